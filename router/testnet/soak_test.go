//go:build soak

package testnet

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestSoakHours plays wholeFire for a day, or for LOKINETD_SOAK ("72h"), six hours from each seed, of which the first is LOKINETD_SEED or a new one each time. It adds a line on each
// to the table in the file LOKINETD_SOAK_DOC, if there is one, with LOKINETD_COMMIT in it.
func TestSoakHours(t *testing.T) {
	hours, part := 24*time.Hour, 6*time.Hour
	if text := os.Getenv("LOKINETD_SOAK"); text != "" {
		var err error
		if hours, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	first := uint64(time.Now().Unix())
	if os.Getenv("LOKINETD_SEED") != "" {
		first = seed(t)
	}
	for s := first; hours > 0; s++ {
		size := wholeFire
		size.lasts = min(part, hours)
		hours -= size.lasts
		t.Run(fmt.Sprint("seed ", s), func(t *testing.T) {
			var r fireResult
			if doc := os.Getenv("LOKINETD_SOAK_DOC"); doc != "" {
				defer func() { r.append(t, doc, size.lasts) }()
			}
			underFire(t, s, size, &r)
		})
	}
}

func (r *fireResult) append(t *testing.T, doc string, lasts time.Duration) {
	f, err := os.OpenFile(doc, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "| %s | %s | %d x %s | %d | %v | %d | %d | %d | %d | %d | %d | %d | %d | %v | %v |\n", time.Now().Format(time.DateOnly), os.Getenv("LOKINETD_COMMIT"),
		runtime.NumCPU(), cpu(), r.seed, lasts.Hours(), r.sent, r.begun(), r.lost, r.late, r.cut,
		r.longer(5*time.Second), r.longer(10*time.Second), r.longer(30*time.Second), r.worst(), r.took.Round(time.Second))
	if err != nil {
		t.Error(err)
	}
}

// cpu names the processor.
func cpu() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	_, name, _ := strings.Cut(string(raw), "model name")
	name, _, _ = strings.Cut(strings.TrimLeft(name, " \t:"), "\n")
	return strings.Join(strings.Fields(name), " ")
}
