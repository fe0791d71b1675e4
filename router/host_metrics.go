package router

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lokinetd/router/control"
)

// Figures for Prometheus: sums of what status says, without what would tell one remote, relay, service or user from another. Labels are words of this program.

// figures remembers counters, of which some would go back when what they count goes: a service that is removed takes its share along.
type figures struct {
	mu   sync.Mutex
	most map[string]float64
}

// collect makes the metrics of a status.
func (f *figures) collect(s control.Status) []control.Metric {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.most == nil {
		f.most = map[string]float64{}
	}
	var all []control.Metric
	gauge := func(name, help string, samples ...control.Sample) {
		all = append(all, control.Metric{Name: "lokinetd_" + name, Help: help, Samples: samples})
	}
	counter := func(name, help string, samples ...control.Sample) {
		for i, x := range samples {
			series := name + " " + strings.Join(x.Labels, " ")
			samples[i].Value = max(x.Value, f.most[series])
			f.most[series] = samples[i].Value
		}
		all = append(all, control.Metric{Name: "lokinetd_" + name, Help: help, Counter: true, Samples: samples})
	}
	one := func(v float64, labels ...string) control.Sample { return control.Sample{Labels: labels, Value: v} }

	gauge("info", "Version and role of the daemon.", one(1, "version", s.Version, "role", oneOf(s.Role, "client", "relay")))
	gauge("ready", "Whether the daemon does its job (1) or not (0).", one(truth(s.State == control.Ready)))
	gauge("start_time_seconds", "When the process was started, in seconds since 1970.", one(float64(s.StartedAt.UnixMilli())/1000))
	gauge("warnings", "What somebody should look after; lokinetd status says what.", one(float64(len(s.Warnings))))
	gauge("relays", "Relays that belong to the network, and those of which a contact is known.",
		one(float64(s.Network.Known), "what", "known"), one(float64(s.Network.Contacts), "what", "contact"))

	counter("ip_packets_total", "IP packets carried in sessions; at a relay, datagrams of its links.", one(float64(s.Traffic.PacketsIn), "direction", "in"), one(float64(s.Traffic.PacketsOut), "direction", "out"))
	counter("ip_bytes_total", "Their bytes.", one(float64(s.Traffic.BytesIn), "direction", "in"), one(float64(s.Traffic.BytesOut), "direction", "out"))
	counter("dropped_total", "Packets, messages and requests that were dropped, by reason.", byKey(s.Drops, "reason")...)

	if r := s.Relay; r != nil {
		gauge("relay_registered", "Whether the network lists this relay.", one(truth(r.Registered)))
		gauge("relay_connections", "Connections with relays and clients.", one(float64(r.Peers), "with", "relays"), one(float64(r.Clients), "with", "clients"))
		gauge("relay_hops", "Hops of others' paths.", one(float64(r.TransitHops)))
		gauge("relay_contacts", "Contacts of clients that are kept for others.", one(float64(r.StoredClients)))
	} else {
		var edges, paths, inbound []float64
		states := map[string]uint64{}
		for _, e := range s.Edges {
			edges = append(edges, e.RTTms)
		}
		for _, p := range s.Paths {
			states[oneOf(p.Kind, "inbound", "client", "relay")+" "+oneOf(p.State, "building", "up", "retired")]++
			if p.RTTms > 0 {
				paths = append(paths, p.RTTms)
			}
		}
		gauge("edges", "Relays that the daemon is connected to.", one(float64(len(edges))))
		gauge("edge_rtt_seconds", "Round trips to them, the shortest and the longest.", extremes(edges)...)
		gauge("paths", "Paths that the daemon has built, by where they lead and their state.", byKey(states, "kind", "state")...)
		gauge("path_rtt_seconds", "Round trips over them, the shortest and the longest.", extremes(paths)...)
		sessions := map[string]uint64{}
		for _, x := range s.Sessions {
			sessions[oneOf(x.Direction, "in", "out")+" "+oneOf(x.State, "seeking", "building", "calling", "established", "answered")]++
		}
		gauge("sessions", "Sessions with remotes, by who called and their state.", byKey(sessions, "direction", "state")...)
		services, published := 0, 0
		for _, e := range s.Endpoints {
			inbound = append(inbound, float64(e.InboundPaths))
			if e.Kind == "service" {
				services++
				published += int(truth(e.PublishedAt != nil))
			}
		}
		gauge("services", "Services, and those that others can find.", one(float64(services), "what", "configured"), one(float64(published), "what", "published"))
		if len(inbound) > 0 {
			gauge("inbound_paths_least", "Inbound paths of the endpoint that has fewest.", one(slices.Min(inbound)))
		}
	}
	if d := s.DNS; d != nil {
		counter("dns_answers_total", "Answers of the name server, by rcode.", byKey(d.Answers, "rcode")...)
		if d.Host != nil {
			gauge("dns_in_effect", "Whether lokinetd has led this host's programs to its name server.", one(truth(d.Host.InEffect)))
		}
	}
	if p := s.Proxy; p != nil {
		gauge("proxy_connections", "Connections of programs that are open.", one(float64(p.Open)))
		counter("proxy_connections_total", "Connections of programs that have reached their remote, have not, were refused as of other networks, or were too many.",
			one(float64(p.Opened), "result", "opened"), one(float64(p.Failed), "result", "failed"), one(float64(p.Refused), "result", "refused"), one(float64(p.Full), "result", "full"))
	}

	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		counter("cpu_seconds_total", "CPU time that was used, of the user and of the kernel.", one(float64(use.Utime.Nano()+use.Stime.Nano())/1e9))
	}
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(statm)); len(f) > 1 {
			if pages, err := strconv.ParseFloat(f[1], 64); err == nil {
				gauge("memory_bytes", "Memory that is resident.", one(pages*float64(os.Getpagesize())))
			}
		}
	}
	gauge("goroutines", "Goroutines.", one(float64(runtime.NumGoroutine())))
	return all
}

// oneOf is a word if it is one of those, else "other": only words of ours become labels.
func oneOf(word string, words ...string) string {
	if slices.Contains(words, word) {
		return word
	}
	return "other"
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// byKey makes a sample of each count, in order; its key has the values of the labels, separated by spaces.
func byKey(counts map[string]uint64, labels ...string) (samples []control.Sample) {
	for key, n := range counts {
		var l []string
		for i, value := range strings.SplitN(key, " ", len(labels)) {
			l = append(l, labels[i], value)
		}
		samples = append(samples, control.Sample{Labels: l, Value: float64(n)})
	}
	slices.SortFunc(samples, func(a, b control.Sample) int { return slices.Compare(a.Labels, b.Labels) })
	return samples
}

// extremes are the least and the greatest of milliseconds, in seconds.
func extremes(ms []float64) []control.Sample {
	if len(ms) == 0 {
		return nil
	}
	return []control.Sample{{Labels: []string{"of", "shortest"}, Value: slices.Min(ms) / 1000}, {Labels: []string{"of", "longest"}, Value: slices.Max(ms) / 1000}}
}

// openMetrics answers Prometheus where the configuration says so.
func (h *host) openMetrics() error {
	c := h.config.Metrics
	if !c.Listen.IsValid() && c.Socket == "" {
		return nil
	}
	f := &figures{}
	server, err := control.ListenMetrics(c.Listen, c.Socket, h.config.Control.Group, func() []control.Metric { return f.collect(h.Status()) }, h.log.With("mod", "control"))
	if err != nil {
		return err
	}
	h.parts.run("metrics", answerLimit, server.Run)
	return nil
}
