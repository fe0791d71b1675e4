package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lokinetd/router/control"
)

// leastWatch is how often a status can be asked for again and again, so that watching costs next to nothing.
const leastWatch = 100 * time.Millisecond

// watch shows the status again and again until the context ends, which is no failure. A daemon that goes away meanwhile is waited for.
func (a *app) watch(cmd *cobra.Command, every time.Duration) error {
	if every < leastWatch {
		return usagef("--every %v: %v or more", every, leastWatch)
	}
	ctx := cmd.Context()
	s, err := a.status(cmd)
	if err != nil {
		return err
	}
	var scr *screen
	if !a.json {
		scr = newScreen(a.out)
	}
	if scr != nil {
		scr.enter()
		defer scr.leave()
	}
	// A terminal that is taken away from us (Ctrl-Z) is given back as it was.
	signals, resumed := make(chan os.Signal, 4), make(chan os.Signal, 1)
	if scr != nil {
		signal.Notify(signals, unix.SIGWINCH, unix.SIGTSTP)
		signal.Notify(resumed, unix.SIGCONT)
		defer signal.Stop(signals)
		defer signal.Stop(resumed)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()

	m := &meter{}
	v := &view{marks: localMarks(), meter: m}
	for {
		v.now = a.now()
		if err == nil {
			m.look(s, v.now)
		}
		if werr := a.showWatched(scr, v, s, err); werr != nil {
			return werr
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return nil
			case sig := <-signals:
				if sig == unix.SIGTSTP {
					scr.leave()
					unix.Kill(unix.Getpid(), unix.SIGSTOP)
					<-resumed
					scr.enter()
				} else {
					scr.clear()
				}
				if err := a.showWatched(scr, v, s, err); err != nil {
					return err
				}
			case <-tick.C:
				again = true
			}
		}
		s, err = a.status(cmd)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// showWatched shows one look: a frame of a screen, a paragraph, or a line of JSON. asked is why there is nothing to show.
func (a *app) showWatched(scr *screen, v *view, s control.Status, asked error) error {
	if a.json {
		if asked != nil {
			fmt.Fprintf(a.err, "lokinetd: %v\n", asked)
			return nil
		}
		return json.NewEncoder(a.out).Encode(s)
	}
	v.width = 0
	if scr != nil {
		v.width, _, _ = terminalSize(a.out)
	}
	var lines []string
	if asked == nil {
		lines = v.status(s)
	} else {
		v.lines = nil
		v.block("no answer", asked.Error())
		lines = v.lines
	}
	head := "lokinetd status at " + v.now.Format(time.TimeOnly)
	if scr != nil {
		return scr.show(append([]string{head + ", until Ctrl-C", ""}, lines...))
	}
	_, err := fmt.Fprintf(a.out, "--- %s\n%s\n", head, strings.Join(lines, "\n"))
	return err
}

// screen is a terminal that is drawn on with what every terminal since the VT100 understands, but for the other screen of xterm, which leaves the user's lines as they were.
type screen struct {
	w     io.Writer
	shown []string // as they stand there
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// newScreen is nil where w is no terminal that can be drawn on.
func newScreen(w io.Writer) *screen {
	if _, _, ok := terminalSize(w); !ok || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return &screen{w: w}
}

// terminalSize is in columns and rows; ok is false where w is no terminal.
func terminalSize(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	var size *unix.Winsize
	if cerr := raw.Control(func(fd uintptr) { size, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }); cerr != nil || err != nil {
		return 0, 0, false
	}
	if size.Col == 0 || size.Row == 0 { // a terminal that does not know, as on a serial line
		return 80, 24, true
	}
	return int(size.Col), int(size.Row), true
}

func (s *screen) enter() {
	s.shown = nil
	io.WriteString(s.w, enterScreen)
}

func (s *screen) leave() { io.WriteString(s.w, leaveScreen) }

// clear forgets what is shown: the terminal has another size.
func (s *screen) clear() {
	s.shown = nil
	io.WriteString(s.w, "\x1b[2J")
}

// show makes the lines those of the screen, cut to its size, in one write, and sends only those that have changed.
func (s *screen) show(lines []string) error {
	columns, rows, _ := terminalSize(s.w)
	if len(lines) > rows {
		rest := len(lines) - rows + 1
		lines = append(slices.Clone(lines[:max(0, rows-1)]), fmt.Sprintf("... %d more lines: make the window higher, or use lokinetd status | less", rest))
	}
	var b bytes.Buffer
	next := make([]string, 0, len(lines))
	for i, line := range lines {
		if r := []rune(line); len(r) > columns {
			line = string(r[:columns])
		}
		next = append(next, line)
		if i >= len(s.shown) || s.shown[i] != line {
			fmt.Fprintf(&b, "\x1b[%d;1H%s", i+1, line)
			if len([]rune(line)) < columns {
				b.WriteString("\x1b[K")
			}
		}
	}
	if len(lines) < len(s.shown) {
		fmt.Fprintf(&b, "\x1b[%d;1H\x1b[J", len(lines)+1)
	}
	s.shown = next
	_, err := s.w.Write(b.Bytes())
	return err
}

// meter turns the sums of one status and the next into rates.
type meter struct {
	at, started time.Time // of the last look; of the daemon
	took        time.Duration
	before, now map[string][2]uint64
	last        control.Traffic
	in, out     []float64 // rates of all traffic, bytes a second, the latest last
}

// curveWidth is how many rates are remembered and drawn.
const curveWidth = 50

// look begins with a new status.
func (m *meter) look(s control.Status, at time.Time) {
	if !s.StartedAt.Equal(m.started) { // another daemon, whose counters begin at zero
		*m = meter{started: s.StartedAt}
	} else if took := at.Sub(m.at); took > 0 {
		m.took = took
		m.in = remember(m.in, perSecond(m.last.BytesIn, s.Traffic.BytesIn, took))
		m.out = remember(m.out, perSecond(m.last.BytesOut, s.Traffic.BytesOut, took))
	}
	m.at, m.last = at, s.Traffic
	m.before, m.now = m.now, map[string][2]uint64{}
}

func remember(rates []float64, r float64) []float64 {
	return append(rates[max(0, len(rates)-curveWidth+1):], r)
}

func perSecond(before, now uint64, took time.Duration) float64 {
	if now < before || took <= 0 {
		return 0
	}
	return float64(now-before) / took.Seconds()
}

// rates are those of one thing since the last look; "" when it was not there then.
func (m *meter) rates(in, out uint64, id string) string {
	m.now[id] = [2]uint64{in, out}
	b, ok := m.before[id]
	if !ok {
		return ""
	}
	rin, rout := uint64(perSecond(b[0], in, m.took)), uint64(perSecond(b[1], out, m.took))
	if rin+rout == 0 {
		return "idle"
	}
	return fmt.Sprintf("in %s/s, out %s/s", bytesText(rin), bytesText(rout))
}

// curves draws what came in and went out lately, both in the same measure.
func (m *meter) curves(k marks, both bool) []string {
	top := 1.0
	for _, r := range append(slices.Clone(m.in), m.out...) {
		top = max(top, r)
	}
	curve := func(name string, rates []float64) string {
		now := 0.0
		line := []rune(strings.Repeat(" ", curveWidth-len(rates)))
		for _, r := range rates {
			level := 0
			if r > 0 {
				level = 1 + int(r/top*float64(len(k.levels)-2)+0.5)
			}
			line = append(line, k.levels[level])
			now = r
		}
		return fmt.Sprintf("%-3s [%s] %s/s", name, string(line), bytesText(uint64(now)))
	}
	lines := []string{curve("in", m.in)}
	if both {
		lines = append(lines, curve("out", m.out))
	}
	lines[0] += fmt.Sprintf(", at most %s/s", bytesText(uint64(top)))
	return lines
}
