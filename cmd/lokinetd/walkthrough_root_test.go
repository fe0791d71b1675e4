//go:build root

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/netif/lab"
)

// The documents that are walked through are the scripts of these tests, so that what they tell people to type is what was tried. In a block that is indented by four spaces
//
//	server# COMMAND     is typed on that machine, as root; with $ for what needs no root
//	server# ... <<'END' goes on to the line END
//	server# editor FILE is followed by a table to put into FILE
//
// and any other line is what the command before it prints, shortened: each is in one line of the output, in this order, with … for anything. NAME_ADDRESS and NAME_KEY stand for 52
// characters that are found in an output and then put into commands.

// step is one command with what is below it.
type step struct {
	line    int
	machine string
	command string
	below   []string
}

var prompt = regexp.MustCompile(`^(\w+)[#$] (.+)$`)

// steps reads a document.
func steps(t *testing.T, file string) (all []step) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	end := "" // of what a command gets as its input
	for n, line := range strings.Split(string(raw), "\n") {
		text, block := strings.CutPrefix(line, "    ")
		m := prompt.FindStringSubmatch(text)
		switch {
		case end != "":
			all[len(all)-1].command += "\n" + text
			if text == end {
				end = ""
			}
		case block && m != nil:
			all = append(all, step{n + 1, m[1], m[2], nil})
			if _, word, ok := strings.Cut(m[2], "<<'"); ok {
				end = strings.TrimSuffix(word, "'")
			}
		case block && len(all) > 0 && all[len(all)-1].line+len(all[len(all)-1].below)+strings.Count(all[len(all)-1].command, "\n") == n:
			all[len(all)-1].below = append(all[len(all)-1].below, text)
		}
	}
	if end != "" || len(all) == 0 {
		t.Fatalf("%s: %d commands, the last one up to %q", file, len(all), end)
	}
	return all
}

// walk is a walk through a document.
type walk struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	machines map[string]*lab.Node
	at       map[string]string // machines by their addresses
	found    map[string]string // what the words in capitals stand for
}

// newWalk makes the folder of programs that the machines have: lokinetd, and stand-ins for what a test must not do to this machine.
func newWalk(t *testing.T, ctx context.Context, dir string) *walk {
	w := &walk{t: t, ctx: ctx, dir: dir, machines: map[string]*lab.Node{}, at: map[string]string{}, found: map[string]string{}}
	bin := filepath.Join(dir, "bin")
	self, err := os.Executable()
	if err == nil {
		err = errors.Join(os.Mkdir(bin, 0o755), os.Symlink(self, filepath.Join(bin, "lokinetd")))
	}
	for name, text := range map[string]string{"apt": standInApt, "systemctl": standInSystemctl} {
		err = errors.Join(err, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+text), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// standInApt unpacks what .ci/run has fetched, and does what the package's own scripts do.
const standInApt = `[ "$*" = "install nginx" ] || { echo "apt $*: not in this test" >&2; exit 1; }
cp -r "$DEBIAN/nginx-common/etc/nginx" /etc/
mkdir -p /var/lib/nginx /var/log/nginx /var/www/html
cp "$DEBIAN/nginx-common/usr/share/nginx/html/index.html" /var/www/html/index.nginx-debian.html
ln -s ../sites-available/default /etc/nginx/sites-enabled/default
exec nginx
`

const standInSystemctl = `set -e
start() { setsid lokinetd run </dev/null >>/var/log/lokinetd.log 2>&1 & echo $! >/run/lokinetd.pid; }
stop() { [ ! -e /run/lokinetd.pid ] || { p=$(cat /run/lokinetd.pid); kill $p; while [ -e /proc/$p/exe ]; do sleep 0.05; done; rm /run/lokinetd.pid; }; }
case "$*" in
"start lokinetd" | "enable --now lokinetd") start ;;
"stop lokinetd") stop ;;
"restart lokinetd") stop; start ;;
"reload lokinetd") kill -HUP "$(cat /run/lokinetd.pid)" ;;
"reload nginx") # a reload is not over when it returns, and is lost right after a start
	nginx -s quit
	while [ -e /run/nginx.pid ]; do sleep 0.05; done
	exec nginx ;;
*) echo "systemctl $*: not in this test" >&2; exit 1 ;;
esac
`

// told logs what the daemons have said if the test has failed.
func (w *walk) told() {
	for name := range w.machines {
		if out, _ := w.try(name, "ss -tulnp; lokinetd status; tail -n 30 /var/log/lokinetd.log"); w.t.Failed() {
			w.t.Logf("%s:\n%s", name, out)
		}
	}
}

// add makes a machine, as the Debian package leaves it, but that its daemon is root's and not started.
func (w *walk) add(l *lab.Lab, name, addr string) {
	w.t.Helper()
	node, err := l.AddNode(lab.NodeConfig{Name: name, ResolvConf: "nameserver 127.3.2.1\n", Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), 16)}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.machines[name], w.at[addr] = node, name
	example, err := filepath.Abs("../../packaging/lokinetd.toml")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, dir := range []string{"/run", "/var", "/root"} {
		w.sh(name, "mount -t tmpfs -o mode=755 none "+dir)
	}
	w.sh(name, "mkdir -p /var/lib/lokinetd /var/log /var/tmp /run/lock /etc/lokinetd && chmod 700 /var/lib/lokinetd && cp "+example+" /etc/lokinetd/lokinetd.toml")
}

// try runs a script on a machine, in root's home.
func (w *walk) try(machine, script string) (string, error) {
	c := w.machines[machine].Command("bash", "-c", script)
	debian, err := filepath.Abs("../../.cache/debian")
	if err != nil {
		return "", err
	}
	c.Dir = "/root"
	c.Env = []string{"HOME=/root", "TERM=dumb", "DEBIAN=" + debian, "PATH=" + filepath.Join(w.dir, "bin") + ":" + debian + "/nginx/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := c.CombinedOutput()
	return string(out), err
}

func (w *walk) sh(machine, script string) string {
	w.t.Helper()
	out, err := w.try(machine, script)
	if err != nil {
		w.t.Fatalf("%s: %s: %v\n%s", machine, script, err, out)
	}
	return out
}

// put puts a table into a configuration: in the place of its head line, or at the end.
func (w *walk) put(machine, file, table string) {
	w.t.Helper()
	head, _, _ := strings.Cut(table, "\n")
	text := w.sh(machine, "cat "+file+" 2>/dev/null || true")
	if before, after, ok := strings.Cut("\n"+text, "\n"+head+"\n"); ok && !strings.HasPrefix(head, "[[") {
		text = strings.TrimPrefix(before+"\n"+table+"\n"+after, "\n")
	} else if strings.HasPrefix(head, "[") {
		text += "\n" + table + "\n"
	} else {
		text = table + "\n" + text // what stands outside of all tables
	}
	w.sh(machine, "cat >"+file+" <<'END OF FILE'\n"+text+"\nEND OF FILE")
}

var (
	capital = regexp.MustCompile(`[A-Z0-9]+_(ADDRESS|KEY)`)
	login   = regexp.MustCompile(`root@[0-9.]+`)
	looking = regexp.MustCompile(`^(lokinetd (status|service (show|list)|address|resolve|ping|relay list|registry show)|curl|cat|ls)\b`)
)

const capitalPattern = `[ybndrfg8ejkmcpqxot1uwisza345h769]{52}`

// run does a step. One that only looks is repeated for a while until it shows what it should: others take a moment.
func (w *walk) run(s step) {
	w.t.Helper()
	command := capital.ReplaceAllStringFunc(s.command, func(name string) string {
		if w.found[name] == "" {
			w.t.Fatalf("line %d: %s is not known yet", s.line, name)
		}
		return w.found[name]
	})
	if file, ok := strings.CutPrefix(command, "editor "); ok {
		table := capital.ReplaceAllStringFunc(strings.Join(s.below, "\n"), func(name string) string { return w.found[name] })
		w.put(s.machine, file, table)
		return
	}
	began := time.Now()
	for end := began.Add(2 * eventually); ; time.Sleep(200 * time.Millisecond) {
		out, err := w.copied(s.machine, command)
		if err == nil {
			err = w.shows(s.below, out)
		}
		if err == nil {
			w.t.Logf("%v  %s# %s\n%s", time.Since(began).Round(10*time.Millisecond), s.machine, command, out)
			return
		}
		if !looking.MatchString(command) || time.Now().After(end) || w.ctx.Err() != nil {
			w.t.Fatalf("line %d: %s# %s: %v\n%s", s.line, s.machine, command, err, out)
		}
	}
}

// copied runs a command, or does what scp and ssh do between the machines.
func (w *walk) copied(machine, command string) (string, error) {
	command = login.ReplaceAllStringFunc(command, func(at string) string { return w.at[strings.TrimPrefix(at, "root@")] })
	if args, ok := strings.CutPrefix(command, "ssh "); ok {
		host, script, _ := strings.Cut(args, " ")
		return w.try(host, strings.Trim(script, "'"))
	}
	args, ok := strings.CutPrefix(command, "scp ")
	if !ok {
		return w.try(machine, command)
	}
	files := strings.Fields(args)
	host, to, ok := strings.Cut(files[len(files)-1], ":")
	if !ok { // from there
		host, from, _ := strings.Cut(files[0], ":")
		out, err := w.try(host, "base64 "+from)
		if err != nil || len(files) != 2 {
			return out, err
		}
		to := files[1]
		return w.try(machine, "f="+to+"; [ ! -d $f ] || f=$f/"+filepath.Base(from)+"; base64 -d >$f <<'END'\n"+out+"END")
	}
	for _, file := range files[:len(files)-1] {
		out, err := w.try(machine, "base64 "+file)
		if err == nil {
			out, err = w.try(host, "f="+to+"; [ ! -d ${f:-.} ] || f=${f:-.}/"+filepath.Base(file)+"; base64 -d >$f <<'END'\n"+out+"END")
		}
		if err != nil {
			return out, err
		}
	}
	return "", nil
}

// shows holds what a document shows against what was printed, and learns what its words in capitals stand for.
func (w *walk) shows(want []string, out string) error {
	lines := strings.Split(out, "\n")
	found := map[string]string{}
	for _, text := range want {
		pattern := regexp.QuoteMeta(text)
		var names []string
		pattern = capital.ReplaceAllStringFunc(pattern, func(name string) string {
			if known := w.found[name]; known != "" {
				return known
			}
			names = append(names, name)
			return "(" + capitalPattern + ")"
		})
		is := regexp.MustCompile("^ *" + strings.ReplaceAll(strings.TrimLeft(pattern, " "), "…", ".*") + "$")
		i := slices.IndexFunc(lines, is.MatchString)
		if i < 0 {
			return fmt.Errorf("no line like %q", text)
		}
		for n, value := range is.FindStringSubmatch(lines[i])[1:] {
			found[names[n]] = value
		}
		lines = lines[i+1:]
	}
	for name, value := range found {
		w.found[name] = value
	}
	return nil
}

// TestPrivateNetwork walks through docs/private-network.md, and types the commands that registry init prints: the document has them all, and no others.
func TestPrivateNetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	l, err := lab.New(lab.NodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWalk(t, ctx, t.TempDir())
	w.add(l, "operator", "10.77.0.1")
	for i := range 5 {
		w.add(l, fmt.Sprint("relay", i+1), fmt.Sprint("10.77.0.", 11+i))
	}
	w.add(l, "alice", "10.77.0.31")
	w.add(l, "bob", "10.77.0.32")
	defer w.told()
	all := steps(t, "../../docs/private-network.md")
	printed := w.sh("operator", strings.Replace(all[0].command, " home ", " printed ", 1))
	for line := range strings.Lines(strings.ReplaceAll(printed, "printed/", "home/")) {
		command := strings.TrimSpace(line)
		if regexp.MustCompile("^(scp|ssh|rm) ").MatchString(command) && !slices.ContainsFunc(all, func(s step) bool { return s.command == command }) {
			t.Errorf("the document does not say %q", command)
		}
	}
	for _, s := range all {
		w.run(s)
	}
	if out := w.sh("relay1", "lokinetd registry show /etc/lokinetd/home.network"); !strings.Contains(out, w.found["NEW_KEY"]) {
		t.Errorf("the first relay's network is %s", out)
	}
	w.run(step{0, "bob", "lokinetd ping " + w.found["BLOG_ADDRESS"] + ".loki", []string{"4 of 4 answered"}})
}

// TestHosting walks through docs/hosting.md.
func TestHosting(t *testing.T) {
	if _, err := os.Stat("../../.cache/debian/nginx"); err != nil {
		t.Fatalf("%v (.ci/run root fetches it)", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	d, err := newDemo(ctx, &app{out: os.Stdout, err: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.relays(); err != nil {
		t.Fatal(err)
	}
	w := newWalk(t, ctx, d.dir)
	for i, name := range []string{"server", "visitor"} {
		w.add(d.lab, name, fmt.Sprintf("10.77.0.%d", 120+i))
		w.put(name, "/etc/lokinetd/lokinetd.toml", fmt.Sprintf("[network]\nfile = %q\noperator = %q", filepath.Join(d.dir, "demo.network"), d.operator.Public()))
		w.sh(name, "systemctl start lokinetd")
	}
	defer w.told()
	for _, s := range steps(t, "../../docs/hosting.md") {
		w.run(s)
	}
	if out, err := w.try("visitor", "curl -sS --max-time 5 http://"+w.found["FAMILY_ADDRESS"]+".loki/"); err == nil {
		t.Errorf("who was struck off still reaches the site: %s", out)
	}
	if page := w.sh("visitor", "curl -sS --max-time 60 http://"+w.found["BLOG_ADDRESS"]+".loki/"); page != "<h1>My blog</h1>\n" {
		t.Errorf("the other site: %q", page)
	}
}
