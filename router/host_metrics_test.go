package router

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/router/control"
)

// plant fills every text of a value with one that is found again, every number with 3 and every list with an element.
func plant(v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("planted<" + at + ">")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(3)
	case reflect.Uint64:
		v.SetUint(3)
	case reflect.Float64:
		v.SetFloat(3)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		plant(v.Elem(), at)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		plant(v.Index(0), at)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_800_000_000, 0)))
			return
		}
		for i := range v.NumField() {
			plant(v.Field(i), at+"."+v.Type().Field(i).Name)
		}
	}
}

// TestMetricsSayNothing: no text of a status stands in the metrics but the version, whatever its fields will be.
func TestMetricsSayNothing(t *testing.T) {
	var s control.Status
	plant(reflect.ValueOf(&s).Elem(), "")
	s.Version = "v1"
	client := s
	client.Relay = nil
	for _, s := range []control.Status{s, client} {
		s.Drops, s.DNS.Answers = map[string]uint64{"link_full": 7}, map[string]uint64{"noerror": 8} // words of ours
		text := metricsText(t, &figures{}, s)
		if strings.Contains(text, "planted") {
			t.Errorf("planted texts are in the metrics:\n%s", text)
		}
		for _, want := range []string{"lokinetd_ip_bytes_total{direction=\"in\"} 3\n", "lokinetd_dropped_total{reason=\"link_full\"} 7\n",
			"lokinetd_dns_answers_total{rcode=\"noerror\"} 8\n", "lokinetd_info{version=\"v1\",role=\"other\"} 1\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	}
}

var metricLine = regexp.MustCompile(`^(# (HELP|TYPE) lokinetd_[a-z_]+ .+|lokinetd_[a-z_]+(\{([a-z]+="[^"\\]*",?)+\})? [-+.0-9e]+)$`)

func metricsText(t *testing.T, f *figures, s control.Status) string {
	t.Helper()
	var b bytes.Buffer
	if err := control.WriteMetrics(&b, f.collect(s)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if !metricLine.MatchString(strings.TrimSuffix(line, "\n")) {
			t.Errorf("not a line of the format: %q", line)
		}
	}
	return b.String()
}

// TestMetricsCount: a client's figures are right, and no counter goes back when a service takes its share along.
func TestMetricsCount(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	s := eventsStatus(at)
	s.Role, s.Edges[0].RTTms, s.Edges[1].RTTms, s.Paths[0].RTTms = "client", 10, 20, 30
	s.Endpoints[1].Kind = "service"
	s.Traffic = control.Traffic{PacketsIn: 1, PacketsOut: 2, BytesIn: 1000, BytesOut: 2000}
	f := &figures{}
	text := metricsText(t, f, s)
	for _, want := range []string{
		"ready 1", "edges 2", `edge_rtt_seconds{of="shortest"} 0.01`, `edge_rtt_seconds{of="longest"} 0.02`, `paths{kind="client",state="building"} 1`, `paths{kind="inbound",state="up"} 1`,
		`path_rtt_seconds{of="longest"} 0.03`, `sessions{direction="out",state="established"} 1`, `sessions{direction="out",state="seeking"} 1`, `services{what="published"} 1`,
		`ip_packets_total{direction="out"} 2`, `ip_bytes_total{direction="in"} 1000`, "dns_in_effect 1",
	} {
		if !strings.Contains(text, "lokinetd_"+want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	s.Traffic.BytesIn = 10
	if text = metricsText(t, f, s); !strings.Contains(text, `ip_bytes_total{direction="in"} 1000`+"\n") {
		t.Errorf("a counter went back:\n%s", text)
	}
	s.Traffic.BytesIn = 1001
	if text = metricsText(t, f, s); !strings.Contains(text, fmt.Sprintf(`ip_bytes_total{direction="in"} %d`+"\n", 1001)) {
		t.Errorf("a counter stands still:\n%s", text)
	}
}

// TestHostMetrics: a running daemon answers on the socket that was asked for, and in the answer is no key, address or name of its.
func TestHostMetrics(t *testing.T) {
	b := userSpaceBench(t)
	b.config.Metrics.Socket = filepath.Join(filepath.Dir(b.config.Control.Socket), "metrics")
	b.config.Service = []config.Service{{Name: "secret-name", Key: filepath.Join(t.TempDir(), "key"), Ports: []config.Port{{Proto: "tcp", Number: 80}}}}
	s := b.mustStart()
	st := s.status()
	c, err := net.Dial("unix", b.config.Metrics.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
	raw, err := io.ReadAll(c)
	text := string(raw)
	if err != nil || !strings.HasPrefix(text, "HTTP/1.0 200 OK\r\n") || !strings.Contains(text, "lokinetd_ready 0\n") || !strings.Contains(text, `lokinetd_services{what="configured"} 1`) {
		t.Errorf("%v: %s", err, text)
	}
	for _, secret := range []string{"secret-name", "bench", st.Endpoints[0].Address[:10], st.Endpoints[1].Address[:10], b.operator.Public().String()[:10]} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in\n%s", secret, text)
		}
	}
	if found := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+|[0-9a-f]+:[0-9a-f]*:|\.(loki|snode|sesh)|[a-z1-9]{52}`).FindString(strings.SplitN(text, "\r\n\r\n", 2)[1]); found != "" {
		t.Errorf("%s is in\n%s", found, text)
	}
	s.stop()
	if _, err := os.Stat(b.config.Metrics.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
