package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/router/control"
	"lokinetd/router/link"
)

// reportTime bounds what a bug report waits for.
const reportTime = 30 * time.Second

func (a *app) bugreportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "bugreport", Short: "Print what helps to find a fault, without keys, names and addresses", Args: cobra.NoArgs,
		Long: "Print what helps to find a fault: version, facts about this system, which settings are not the default ones,\n" +
			"status, the findings of \"lokinetd doctor\", what was dropped and what was logged lately. Keys, names and addresses\n" +
			"are replaced by numbers, the same number for the same thing; secrets and what was carried are not looked at.\n" +
			"Read it before you send it: lokinetd bugreport >report.txt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), reportTime)
			defer cancel()
			return a.bugreport(ctx)
		},
	}
}

// bugreport collects the report and makes one pass over all of it at the end, so that no part can forget to.
func (a *app) bugreport(ctx context.Context) error {
	var b bytes.Buffer
	r := newRedactor()
	part := func(name string) { fmt.Fprintf(&b, "\n== %s\n", name) }

	fmt.Fprintf(&b, "lokinetd bug report of %s\nKeys, names and addresses are replaced by numbers, the same number for the same thing. Read it before you send it.\n",
		a.now().UTC().Format(time.RFC3339))
	part("program")
	fmt.Fprintf(&b, "lokinetd %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if err := link.SelfTest(); err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}
	part("system")
	systemFacts(&b)

	part("configuration")
	c, err := a.reportedConfig(r)
	var wrong config.Errors
	switch {
	case errors.As(err, &wrong):
		for _, e := range wrong {
			fmt.Fprintf(&b, "line %d is wrong: %s (lokinetd config check says why)\n", e.Line, e.Key)
		}
	case err != nil:
		fmt.Fprintf(&b, "%v\n", err)
	default:
		configFacts(&b, c, r)
	}

	part("status")
	client, err := a.client()
	if err == nil {
		err = a.daemonFacts(ctx, &b, client, r, part)
	}
	if errors.As(err, &wrong) {
		err = errors.New("the configuration does not say where the daemon answers")
	}
	if err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}

	if c != nil { // what is wrong with a configuration is said with the value that is
		part("doctor")
		again := &app{config: a.config, socket: a.socket, out: &b, err: &b, clock: a.clock}
		fmt.Fprintf(&b, "exit code %d\n", again.execute(ctx, []string{"doctor", "--config", a.config, "--socket", a.socket}))
	}
	_, err = io.WriteString(a.out, r.text(b.String()))
	return err
}

// reportedConfig reads the configuration that the daemon has, and lets the redactor know the words in it.
func (a *app) reportedConfig(r *redactor) (*config.Config, error) {
	c, _, err := a.meantConfig()
	if a.config == defaultConfig && errors.Is(err, fs.ErrNotExist) {
		c, err = config.LoadWith("", asUser)
	}
	if err != nil {
		return nil, err
	}
	for _, s := range c.Service {
		r.word("service", s.Name)
	}
	base := config.Default()
	for _, x := range []struct{ kind, is, usually string }{
		{"path", c.DataDir, base.DataDir}, {"path", c.Network.File, ""}, {"path", c.Control.Socket, base.Control.Socket},
		{"group", c.Control.Group, base.Control.Group}, {"interface", c.TUN.Name, base.TUN.Name},
	} {
		if x.is != x.usually {
			r.word(x.kind, x.is)
		}
	}
	return c, nil
}

// configFacts writes the settings that are not the default ones, as far as their type says that they are no secret: numbers, switches, words of a fixed choice, ports.
// Of all others it says that they are set.
func configFacts(w io.Writer, c *config.Config, r *redactor) {
	base := config.Default()
	var walk func(name string, v, d reflect.Value, tag reflect.StructTag)
	walk = func(name string, v, d reflect.Value, tag reflect.StructTag) {
		if d.IsValid() && reflect.DeepEqual(v.Interface(), d.Interface()) {
			return
		}
		say := func(text any) { fmt.Fprintf(w, "%s = %v\n", name, text) }
		switch x := v.Interface().(type) {
		case time.Duration, bool, int, config.Levels, config.Port:
			say(x)
			return
		case netip.AddrPort:
			say(r.addrPort(x))
			return
		case []netip.AddrPort:
			list := make([]string, len(x))
			for i, a := range x {
				list[i] = r.addrPort(a)
			}
			say(list)
			return
		case []config.Port:
			say(x)
			return
		}
		switch {
		case v.Kind() == reflect.Struct && strings.HasPrefix(v.Type().PkgPath(), "lokinetd/config") && v.NumField() > 0 && v.Type().Field(0).Tag.Get("toml") != "":
			for i := range v.NumField() {
				f := v.Type().Field(i)
				var def reflect.Value
				if d.IsValid() {
					def = d.Field(i)
				}
				walk(strings.TrimPrefix(name+"."+f.Tag.Get("toml"), "."), v.Field(i), def, f.Tag)
			}
		case v.Kind() == reflect.Slice && v.Type().Elem() == reflect.TypeFor[config.Service]():
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", name, i), v.Index(i), reflect.Value{}, "")
			}
		case v.Kind() == reflect.Slice:
			if v.Len() > 0 || d.IsValid() {
				say(fmt.Sprintf("(a list of %d)", v.Len()))
			}
		case tag.Get("oneof") != "":
			say(fmt.Sprintf("%q", v.String()))
		case v.IsZero():
			if d.IsValid() {
				say("(empty)")
			}
		default:
			say("(set)")
		}
	}
	walk("", reflect.ValueOf(c).Elem(), reflect.ValueOf(base).Elem(), "")
}

// daemonFacts writes what a running daemon says.
func (a *app) daemonFacts(ctx context.Context, b *bytes.Buffer, client *control.Client, r *redactor, part func(string)) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	r.status(&s)
	for _, line := range (&view{now: a.now(), marks: asciiMarks}).status(s) {
		fmt.Fprintln(b, line)
	}
	part("since the start")
	for _, m := range s.Timeline {
		fmt.Fprintf(b, "%10.1f ms  %s\n", m.AtMs, m.Name)
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Drops)) {
		fmt.Fprintf(b, "%10d dropped: %s\n", s.Drops[reason], reason)
	}
	if s.DNS != nil {
		for _, rcode := range slices.Sorted(maps.Keys(s.DNS.Answers)) {
			fmt.Fprintf(b, "%10d answers: %s\n", s.DNS.Answers[rcode], rcode)
		}
		if s.DNS.Host != nil {
			for _, why := range s.DNS.Host.Why {
				fmt.Fprintf(b, "resolver: %s\n", why)
			}
		}
	}
	l, err := client.Log(ctx)
	if err != nil {
		return err
	}
	part("log (without what it is about)")
	for _, x := range l.Lines {
		fmt.Fprintf(b, "%s %-5s %-8s %s\n", x.Time.UTC().Format(time.RFC3339), x.Level, x.Module, x.Message)
	}
	return nil
}

// systemFacts writes what the fault may depend on.
func systemFacts(w io.Writer) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(w, "kernel     %s %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]))
	}
	if raw, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				fmt.Fprintf(w, "system     %s\n", strings.Trim(strings.TrimSpace(name), `"`))
			}
		}
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	fmt.Fprintf(w, "processors %d\n", runtime.NumCPU())
	fmt.Fprintf(w, "systemd    %v\n", there("/run/systemd/system"))
	fmt.Fprintf(w, "container  %v\n", there("/run/systemd/container") || there("/.dockerenv") || there("/run/.containerenv"))
	fmt.Fprintf(w, "root       %v\n", os.Geteuid() == 0)
	fmt.Fprintf(w, "IPv6       %v\n", there("/proc/net/if_inet6"))
	tun := "usable"
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		tun = err.Error()
	}
	fmt.Fprintf(w, "tun        %s\n", tun)
	fmt.Fprintf(w, "locale     UTF-8: %v\n", localMarks().hop == boxMarks.hop)
}
