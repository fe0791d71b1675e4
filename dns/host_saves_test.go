package dns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lokinetd/router/testkit"
)

// TestSaves: whatever ends a change of the host's resolver, resolv.conf is the host's own or ours, and in the latter case the host's own is kept; files of other programs are whole.
func TestSaves(t *testing.T) {
	const theirs = "nameserver 1.1.1.1\n"
	apply := func(m Method) func(dir string) error {
		return func(dir string) error {
			_, err := Place{Root: dir}.Apply(context.Background(), Decision{Method: m, StartNM: true}, addrPorts("127.3.2.1"), testLink)
			return err
		}
	}
	revert := func(dir string) error { _, err := Place{Root: dir}.Revert(context.Background()); return err }
	host := func(dir string) error {
		return errors.Join(os.MkdirAll(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, resolvConf), []byte(theirs), 0o644))
	}
	for name, s := range map[string]testkit.Save{
		"file":           {Old: host, New: apply(MethodFile)},
		"file undone":    {Old: func(dir string) error { return errors.Join(host(dir), apply(MethodFile)(dir)) }, New: revert},
		"dnsmasq":        {Old: host, New: apply(MethodNM), Steps: []string{"dnsmasq", "NetworkManager"}},
		"dnsmasq undone": {Old: func(dir string) error { return errors.Join(host(dir), apply(MethodNM)(dir)) }, New: revert, Steps: []string{"NetworkManager", "dnsmasq"}},
		"delegate":       {Old: host, New: apply(MethodDelegate)},
	} {
		s.Load = func(dir string) (string, error) {
			p := Place{Root: dir}
			var found []string
			switch now := p.read(resolvConf); {
			case p.ours(resolvConf) && p.read(resolvBackup) == theirs && strings.HasSuffix(now, "nameserver 127.3.2.1\n"):
				found = append(found, "ours")
			case now != theirs:
				return "", errors.New(resolvConf + ": " + now)
			}
			for _, f := range []struct{ name, file, end string }{{"dnsmasq", dnsmasqFile, "ip6.arpa/127.3.2.1#53\n"}, {"NetworkManager", nmFile, "dns=dnsmasq\n"}, {"delegate", delegateFile, "DefaultRoute=no\n"}} {
				if _, err := os.Lstat(p.at(f.file)); err == nil {
					found = append(found, f.name)
					if !p.ours(f.file) || !strings.HasSuffix(p.read(f.file), f.end) {
						return "", errors.New(f.file + ": " + p.read(f.file))
					}
				}
			}
			return strings.Join(found, ", "), nil
		}
		s.Next = func(dir string) error { Place{Root: dir}.sweep(); return nil }
		t.Run(name, func(t *testing.T) { t.Log(testkit.Saves(t, s), "ends") })
	}
}
