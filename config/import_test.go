package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestImport: what becomes of files of both programs, and what is said of each line, is in testdata/import/*.txt.
func TestImport(t *testing.T) {
	files, err := filepath.Glob("testdata/import/*.ini")
	if err != nil || len(files) < 8 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			im, err := Import(data, "/etc/old/"+filepath.Base(file), Places{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(im.TOML, "/elsewhere/x.toml"); err != nil {
				t.Errorf("not right: %v", err)
			}
			got := bytes.Clone(im.TOML)
			for _, n := range im.Notes {
				got = fmt.Appendf(got, "--- %d: %s: %s\n", n.Line, n.Setting, n.Message)
			}
			golden := strings.TrimSuffix(file, ".ini") + ".txt"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v; got:\n%s", err, got)
			}
			// Windows' line ends and a byte order mark change nothing.
			again, err := Import(append([]byte("\ufeff"), bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))...), "/etc/old/"+filepath.Base(file), Places{})
			if err != nil || !bytes.Equal(again.TOML, im.TOML) || len(again.Notes) != len(im.Notes) {
				t.Errorf("with CR LF: %v\n%s", err, again.TOML)
			}
		})
	}
}

// TestImportSettings: every rule leads to a key, or to a note, with its line; none is silently lost.
func TestImportSettings(t *testing.T) {
	for setting := range importRules {
		section, name, _ := strings.Cut(setting, ".")
		name = strings.Replace(name, "*", "some", 1)
		im, err := Import(fmt.Appendf(nil, "[%s]\n%s=1\n", section, name), "/x/y.ini", Places{})
		if err != nil {
			t.Errorf("%s: %v", setting, err)
			continue
		}
		if len(im.Notes) == 0 && !strings.Contains(string(im.TOML), " = ") {
			t.Errorf("%s is lost", setting)
		}
		for _, n := range im.Notes {
			if n.Line != 2 || n.Setting != "["+section+"] "+name || n.Message == "" {
				t.Errorf("%s: %+v", setting, n)
			}
		}
	}
}

func TestImportErrors(t *testing.T) {
	for _, c := range [][2]string{
		{"a=b", "x.ini:1: a stands in front of all sections: is this a configuration of Lokinet or Session Router?"},
		{"[router]\nnetid", "x.ini:2: want a section, or a setting like name=value"},
		{"[router\n[]\n=1", "x.ini:1: want a section, like [network]\nx.ini:2: want a section, like [network]\nx.ini:3: want a section, or a setting like name=value"},
		{"[network]\n\nkeyfile=a\x00b", "x.ini:3: not text"},
		{"[network]\nkeyfile=\xff", "x.ini:2: not text"},
		{"[dns]\n" + strings.Repeat("upstream=a\n", maxSettings+1), "x.ini: 2001 settings, at most 2000 are read"},
		{strings.Repeat("#", MaxFile+1), "x.ini: larger than 1048576 bytes"},
	} {
		if _, err := Import([]byte(c[0]), "x.ini", Places{}); err == nil || err.Error() != c[1] {
			t.Errorf("%.40q: %v", c[0], err)
		}
	}
}

// FuzzImport: a file that somebody else wrote must not make the import panic, nor come out as a configuration that is not right.
//
// Decoders: Import importer.finish isListKey readINI iniLine.setting importer.recognize importer.take parseBool parseSpan asText asNumber asBool asSpan asRelays netID dataDir record
// Decoders: authType code whitelisted understood interfaceAddress nameServer resolver listen bindInterface rangeIPv6 bootstrapNode logType logFile logLevel
func FuzzImport(f *testing.F) {
	files, _ := filepath.Glob("testdata/import/*.ini")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{
		"[network]\nexit=x\nprofiling=maybe\nreachable=maybe\nsrv=\nsrv=x\nauth-type=\nauth=whitelist\nauth-whitelist=x\nifaddr=\nifaddr=x\nifaddr=10.0.0.1/16\nifaddr=10.1.0.1/16\nifaddr=fd00::1/64\nip6-range=\n",
		"[network]\nip6-range=fd00::1\n[bootstrap]\nadd-node=\nadd-node=b\n[logging]\ntype=file\nfile=x\nlevel=\n", "[logging]\nlevel=trace, path=warning,x=err\ntype=\nfile=-\n[bind]\nlo=x\n*=5\n*=0\n127.0.0.1=1090\neth0=1090\n",
		"[router]\nrole=relay\nnetid=x\n[bind]\nlisten=:1090\nlisten=:1091\n", "[dns]\nbind=\nupstream=\nupstream=1.1.1.1\nno-resolvconf=1\n", "[dns]\nlisten=127.0.0.1\nlisten=\n",
		"[bind]\neth0=1090\n[lokid]\nenabled=true\n", "[network]\nauth-static=x\nauth-file=x\n",
	} {
		f.Add([]byte(s))
	}
	for _, s := range []string{strings.Repeat("a", MaxFile+1), "[network]\n" + strings.Repeat("srv=_a._tcp 1 1 1\n", maxSettings+1), "[network]\n" + numbered("srv=_a%d._tcp 1 1 1\n", maxSRV+1)} {
		Import([]byte(s), "/etc/x.ini", Places{}) // too long for a fuzzer
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		im, err := Import(data, "/etc/x.ini", Places{})
		if err != nil {
			if len(data) > 0 && strings.HasPrefix(err.Error(), "/etc/imported.toml") {
				t.Error(err)
			}
			return
		}
		if _, err := Parse(im.TOML, "/x.toml"); err != nil {
			t.Errorf("%v\n%s", err, im.TOML)
		}
	})
}

// numbered is a line for each number.
func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}
