package testnet

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/netif"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

// A network under fire: faults of all kinds begin and end at times and places that a seed decides, while clients talk to services, a message a second each. What is judged:
//
//   - no message is lost while there is a route (see oracle), whatever restarts, and silences are short;
//   - an IPv4 address never means another remote while programs may hold it (see ledger);
//   - nothing grows, nothing is left behind, nothing panics.
//
// A node's clock cannot be set in a bubble, where all share one; what the daemon makes of a jump (router/host_wake.go) is Node.Wake, which is played with and without a sleep before it.
type fire struct {
	*testing.T
	n    *Net
	f    *fabric
	rng  *rand.Rand
	size fireSize

	talks  []*talk
	remote map[*talk]*Host
	down   map[*Host]bool
	folder map[*Host]bool // whose folder can be replaced
	book   ledger
	counts map[string]int
	most   session.Sizes
}

type fireSize struct {
	relays, services, browsers, flows int
	lasts                             time.Duration
	calm                              time.Duration // the end, in which no fault begins, and in whose second half there is none
	pause                             time.Duration // between the beginnings of two faults, on average
	mayLose                           int           // messages: keys are others in each run, and what comes once in days must not fail a test of an hour
}

// fault is one kind: a call begins it, and the call that it returns ends it. nil: not now.
type fault struct {
	what        string
	least, most time.Duration
	begin       func() (end func())
}

const (
	wholeNetwork = 0.5 // of the relays, at least, is what a route needs
	fewRelays    = 4   // the smaller part of a network that falls apart
	mostDown     = 5   // relays at a time
)

func (x *fire) between(least, most time.Duration) time.Duration {
	return least + time.Duration(x.rng.Int64N(int64(most-least)+1))
}

// any1 draws one.
func any1[E any](x *fire, of []E) E { return of[x.rng.IntN(len(of))] }

func (x *fire) relay() *Host      { return x.running(x.n.Relays) }
func (x *fire) client() *Host     { return x.running(x.n.Clients) }
func (x *fire) services() []*Host { return x.n.Clients[:x.size.services] }
func (x *fire) browsers() []*Host { return x.n.Clients[x.size.services:] }

// running draws a host that runs, or nil.
func (x *fire) running(of []*Host) *Host {
	up := slices.DeleteFunc(slices.Clone(of), func(h *Host) bool { return x.down[h] })
	if len(up) == 0 {
		return nil
	}
	return any1(x, up)
}

// leave ends a node by stop until the call that it returns; some have to stay.
func (x *fire) leave(h *Host, stop func(*Host)) func() {
	if h == nil {
		return nil
	}
	relays := 0
	for d := range x.down {
		if d.relay {
			relays++
		}
	}
	if h.relay && relays >= min(mostDown, len(x.n.Relays)-fewRelays-2) {
		return nil
	}
	x.down[h] = true
	x.book.stopped(h)
	stop(h)
	return func() {
		h.Start()
		delete(x.down, h)
	}
}

// inUse draws a relay on the way of a session that is in use, or any.
func (x *fire) inUse() *Host {
	from := any1(x, x.talks).f.from
	if !x.down[from] {
		for _, p := range from.Node.Paths() {
			if p.Current {
				id := any1(x, p.Hops)
				for _, r := range x.n.Relays {
					if r.Secret.Public() == id && !x.down[r] {
						return r
					}
				}
			}
		}
	}
	return x.relay()
}

// cutOff keeps a host from all others.
func (x *fire) cutOff(h *Host, on bool) {
	for _, r := range x.n.Relays {
		if r != h {
			x.f.setCut(h.addr, r.addr, on)
		}
	}
}

// pair draws two hosts between which there can be a link.
func (x *fire) pair() (a, b *Host) {
	a = x.relay()
	for b = a; b == a; {
		if b = x.relay(); x.rng.IntN(2) == 0 {
			b = any1(x, x.n.Clients)
		}
	}
	return a, b
}

func stop(h *Host) { h.Stop() }
func kill(h *Host) { h.Kill() }

func (x *fire) faults() []fault {
	const second, minute = time.Second, time.Minute
	return []fault{
		{"relays stopped", second, 5 * minute, func() func() { return x.leave(x.inUse(), stop) }},
		{"relays killed", second, 5 * minute, func() func() { return x.leave(x.inUse(), kill) }},
		{"relays restarted", second, 5 * second, func() func() { return x.leave(x.inUse(), kill) }},
		{"services restarted", second, minute, func() func() { return x.leave(x.running(x.services()), any1(x, []func(*Host){stop, kill})) }},
		{"browsers restarted", second, minute, func() func() { return x.leave(x.running(x.browsers()), any1(x, []func(*Host){stop, kill})) }},
		{"partitions", 5 * second, minute, func() func() {
			one, other := x.halves()
			cut := func(on bool) {
				for _, a := range one {
					for _, b := range other {
						x.f.setCut(a.addr, b.addr, on)
					}
				}
			}
			cut(true)
			return func() { cut(false) }
		}},
		{"all paths lost", 10 * second, minute, func() func() {
			h := x.client()
			if h == nil {
				return nil
			}
			x.cutOff(h, true)
			told := x.rng.IntN(2) == 0 // by the kernel
			return func() {
				x.cutOff(h, false)
				if told && !x.down[h] {
					h.Node.Wake(false)
				}
			}
		}},
		{"sleeps", 10 * second, 5 * minute, func() func() {
			h := x.client()
			if h == nil {
				return nil
			}
			x.cutOff(h, true)
			return func() {
				x.cutOff(h, false)
				if !x.down[h] {
					h.Node.Wake(true)
				}
			}
		}},
		{"clocks jumped", 0, 0, func() func() {
			h := x.client()
			if h == nil {
				return nil
			}
			h.Node.Wake(true)
			return func() {}
		}},
		{"links cut", second, 5 * minute, func() func() {
			a, b := x.pair()
			x.f.setCut(a.addr, b.addr, true)
			return func() { x.f.setCut(a.addr, b.addr, false) }
		}},
		{"links cut one way", second, 5 * minute, func() func() {
			a, b := x.pair()
			if x.rng.IntN(2) == 0 {
				a, b = b, a
			}
			x.f.setCutWay(a.addr, b.addr, true)
			return func() { x.f.setCutWay(a.addr, b.addr, false) }
		}},
		{"lossy one way", second, 5 * minute, func() func() {
			a, b := x.pair()
			if x.rng.IntN(2) == 0 {
				a, b = b, a
			}
			x.f.setLossOf(a.addr, b.addr, 0.1+0.4*x.rng.Float64())
			return func() { x.f.setLossOf(a.addr, b.addr, 0) }
		}},
		{"times of loss", second, 5 * minute, func() func() {
			x.f.setLoss(0.05 * x.rng.Float64())
			return func() { x.f.setLoss(0) }
		}},
		{"times of disorder", second, 5 * minute, func() func() {
			x.f.setUnruly(x.between(5*time.Millisecond, 200*time.Millisecond), 0.1*x.rng.Float64())
			return func() { x.f.setUnruly(0, 0) }
		}},
		{"disks full", second, 5 * minute, func() func() {
			h := any1(x, slices.Collect(maps.Keys(x.folder)))
			if x.book.full[h] {
				return nil
			}
			x.fill(h, true)
			return func() { x.fill(h, false) }
		}},
	}
}

// halves parts all hosts: fewRelays to a third of the relays, and some of the clients, from the rest.
func (x *fire) halves() (one, other []*Host) {
	few := fewRelays + x.rng.IntN(max(1, len(x.n.Relays)/3-fewRelays+1))
	for i, at := range x.rng.Perm(len(x.n.Relays)) {
		if h := x.n.Relays[at]; i < few {
			one = append(one, h)
		} else {
			other = append(other, h)
		}
	}
	for _, h := range x.n.Clients {
		if x.rng.IntN(3) == 0 {
			one = append(one, h)
		} else {
			other = append(other, h)
		}
	}
	return one, other
}

// fill has all writes to a host's folder fail, or succeed again: it is a link to the folder or to a place where not even root can make a file.
func (x *fire) fill(h *Host, full bool) {
	to := h.dir + ".real"
	if full {
		to = "/proc/self/task"
	}
	new := h.dir + ".new"
	if err := os.Symlink(to, new); err != nil {
		x.Fatal(err)
	}
	if err := os.Rename(new, h.dir); err != nil {
		x.Fatal(err)
	}
	x.book.fill(h, full)
}

// oracle tells the flows whether there is a route. Both daemons run, and relays that run join them: the client has a link to one, the service to one, and over links between relays at least
// wholeNetwork of all hang together with these, among them one that keeps the service's contact. A link counts if it is cut in neither direction; loss does not matter. That
// connections, paths and sessions take time to come back is no excuse. Fewer relays are no route, even where a chain of them leads through: clients draw the relays of their paths from all of the network, and with
// fewer hardly any path would hold.
func (x *fire) oracle() {
	joined := func(a, b *Host) bool { return !x.f.cut(a.addr, b.addr) && !x.f.cut(b.addr, a.addr) }
	island := map[*Host]int{}
	var islands [][]*Host
	for _, first := range x.n.Relays {
		if x.down[first] || island[first] > 0 {
			continue
		}
		island[first] = len(islands) + 1
		found := []*Host{first}
		for i := 0; i < len(found); i++ {
			for _, h := range x.n.Relays {
				if !x.down[h] && island[h] == 0 && joined(found[i], h) {
					island[h] = len(islands) + 1
					found = append(found, h)
				}
			}
		}
		islands = append(islands, found)
	}
	ids := x.n.file.Relays
	for _, k := range x.talks {
		from, to := k.f.from, x.remote[k]
		route := !x.down[from] && !x.down[to] && slices.ContainsFunc(islands, func(all []*Host) bool {
			reaches := func(h *Host) bool { return slices.ContainsFunc(all, func(r *Host) bool { return joined(h, r) }) }
			blinded, _ := to.Secret.Public().Blind()
			keepers := netdb.Closest(ids, blinded, netdb.Locations)
			keeps := func(r *Host) bool { return slices.Contains(keepers, r.Secret.Public()) }
			return len(all) >= int(wholeNetwork*float64(len(x.n.Relays))) && reaches(from) && reaches(to) && slices.ContainsFunc(all, keeps)
		})
		k.f.SetRoute(route)
	}
}

// ledger is each client's map of IPv4 addresses, as the daemon keeps it, and what its addresses have meant.
type ledger struct {
	t     *testing.T
	mu    sync.Mutex
	maps  map[*Host]*netif.Map // of the daemon that runs
	kept  map[*Host]netif.Kept // its file
	full  map[*Host]bool       // its disk
	meant map[*Host]map[netip.Addr]meaning
	given int
}

type meaning struct {
	remote key.Address
	last   time.Time
}

// recent is how long an address is not given to another remote after its last use.
const recent = 10 * time.Minute

func (l *ledger) met(h *Host, remote key.Address) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	m := l.maps[h]
	if m == nil {
		m, _ = netif.NewMap(key.Address{Key: h.Secret.Public()}, netip.MustParsePrefix("172.16.0.1/24"), netip.Prefix{})
		m.Restore(l.kept[h], now)
		l.maps[h] = m
	}
	a, err := m.IPv4(remote, now)
	if err != nil {
		l.t.Errorf("%v has no address for %v: %v", h, remote, err)
		return
	}
	if l.meant[h] == nil {
		l.meant[h] = map[netip.Addr]meaning{}
	}
	if was, ok := l.meant[h][a]; !ok {
		l.given++
	} else if was.remote != remote && now.Sub(was.last) < recent {
		l.t.Errorf("%v: %v meant %v %v ago and means %v now", h, a, was.remote, now.Sub(was.last), remote)
	}
	l.meant[h][a] = meaning{remote, now}
}

// save does what the daemon does every five seconds.
func (l *ledger) save(only *Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h, m := range l.maps {
		if only != nil && h != only || l.full[h] {
			continue
		}
		limit := 4096
		if h.fresh {
			limit = 0
		}
		l.kept[h] = m.Keep(limit, time.Now())
	}
}

// stopped: its daemon ends, by a kill or not; the file is what was saved last.
func (l *ledger) stopped(h *Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.maps, h)
}

func (l *ledger) fill(h *Host, full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full[h] = full
}

// fireResult is what a run found.
type fireResult struct {
	seed                  uint64
	sent, lost, late, cut int
	faults                map[string]int
	silences              []time.Duration
	addresses             int
	took                  time.Duration
	most                  session.Sizes
}

func (r *fireResult) worst() (d time.Duration) {
	if n := len(r.silences); n > 0 {
		d = r.silences[n-1].Round(100 * time.Millisecond)
	}
	return d
}

func (r *fireResult) longer(d time.Duration) (n int) {
	for _, s := range r.silences {
		if s >= d {
			n++
		}
	}
	return n
}

func (r *fireResult) begun() (n int) {
	for _, m := range r.faults {
		n += m
	}
	return n
}

func (r *fireResult) log(t *testing.T) {
	t.Logf("seed %d: %d messages, %d faults; not answered: %d where there was a route, %d where there was one for a part of the last minute, %d where there was none",
		r.seed, r.sent, r.begun(), r.lost, r.late, r.cut)
	t.Logf("silences although there was a route: %d of %v or more, %d of 5 s, %d of 10 s, %d of 30 s, the longest %v", len(r.silences), longSilence,
		r.longer(5*time.Second), r.longer(10*time.Second), r.longer(30*time.Second), r.worst())
	t.Logf("%d addresses were given; the most that a client held: %+v", r.addresses, r.most)
	t.Logf("%v", r.faults)
}

// underFire runs a network under fire. When it fails, it does not return; result is what there was all the same.
func underFire(t *testing.T, seed uint64, size fireSize, result *fireResult) {
	wall, buffers := time.Now(), packet.InUse()
	defer func() {
		result.took = time.Since(wall)
		t.Logf("took %v", result.took)
	}()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x := &fire{
			T: t, rng: rand.New(rand.NewPCG(seed, 2)), size: size,
			remote: map[*talk]*Host{}, down: map[*Host]bool{}, folder: map[*Host]bool{}, counts: map[string]int{},
			book: ledger{t: t, maps: map[*Host]*netif.Map{}, kept: map[*Host]netif.Kept{}, full: map[*Host]bool{}, meant: map[*Host]map[netip.Addr]meaning{}},
		}
		x.n = New(t, Options{Relays: size.relays, Clients: size.services + size.browsers, Latency: 20 * time.Millisecond, Seed: seed, Change: func(h *Host) {
			at := int(h.addr.Addr().As4()[2])
			h.browses = !h.relay && at >= size.services
			h.fresh = h.browses && at%2 == 1
			h.options = func(o *path.Options) { *o = path.DefaultOptions() }
			if relay := int(h.addr.Addr().As4()[1]); h.relay && relay < 2 || !h.relay && (at < 2 || at >= size.services && at < size.services+2) {
				h.dir = filepath.Join(dir, h.String())
				if err := os.Mkdir(h.dir+".real", 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(h.dir+".real", h.dir); err != nil {
					t.Fatal(err)
				}
				x.folder[h] = true
			}
		}})
		x.f = x.n.medium.(*fabric)
		x.n.meets = x.book.met
		time.Sleep(10 * time.Second)
		x.run()
		*result = x.result()
		result.seed = seed
		result.log(t)
	})
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers were not released", left)
	}
}

func (x *fire) run() {
	taken := map[[2]*Host]bool{}
	for len(x.talks) < x.size.flows {
		from := x.browsers()[len(x.talks)%x.size.browsers]
		to := any1(x, x.services())
		if taken[[2]*Host{from, to}] {
			continue
		}
		taken[[2]*Host{from, to}] = true
		k := converse(from.Flow(to), x.between(0, time.Second), x.size.lasts)
		x.talks, x.remote[k] = append(x.talks, k), to
	}
	type begun struct {
		until time.Time
		end   func()
	}
	var pending []begun
	faults := x.faults()
	var deck []fault
	start := time.Now()
	part := x.size.lasts / 6
	next := start.Add(part)
	var growth [][2]uint64
	for second := 0; time.Since(start) < x.size.lasts; second++ {
		time.Sleep(time.Second)
		now, changed := time.Now(), false
		pending = slices.DeleteFunc(pending, func(b begun) bool {
			over := !now.Before(b.until)
			if over {
				b.end()
				changed = true
			}
			return over
		})
		if x.size.lasts-time.Since(start) > x.size.calm && x.rng.Float64() < float64(time.Second)/float64(x.size.pause) {
			if len(deck) == 0 { // so that each kind comes about as often as any other, in the shortest run too
				deck = slices.Clone(faults)
				x.rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
			}
			f := deck[0]
			deck = deck[1:]
			if end := f.begin(); end != nil {
				until := now.Add(x.between(f.least, f.most))
				if last := start.Add(x.size.lasts - x.size.calm/2); until.After(last) {
					until = last
				}
				pending = append(pending, begun{until, end})
				x.counts[f.what]++
				changed = true
			}
		}
		if changed || second == 0 {
			x.oracle()
		}
		if second%5 == 0 {
			x.book.save(nil)
			x.measure()
		}
		if !now.Before(next) {
			next = next.Add(part)
			growth = append(growth, x.grown(time.Since(start)))
		}
	}
	for _, k := range x.talks {
		k.wait()
	}
	time.Sleep(2 * time.Minute)
	x.quiet()
	x.bounded()
	first, last := growth[:len(growth)/2], growth[len(growth)/2:]
	for i, what := range []string{"goroutines", "bytes"} {
		if a, b := median(first, i), median(last, i); b > 2*a {
			x.Errorf("from %d to %d %s", a, b, what)
		}
	}
}

func median(of [][2]uint64, i int) uint64 {
	all := make([]uint64, len(of))
	for at, x := range of {
		all[at] = x[i]
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// measure notes the most that a client's sessions have held.
func (x *fire) measure() {
	for _, h := range x.n.Clients {
		if x.down[h] {
			continue
		}
		s := h.Endpoint.Sessions.Sizes()
		m := &x.most
		m.Remotes, m.Sessions, m.Calls, m.Contacts = max(m.Remotes, s.Remotes), max(m.Sessions, s.Sessions), max(m.Calls, s.Calls), max(m.Contacts, s.Contacts)
		m.Pending, m.Queued, m.Tried = max(m.Pending, s.Pending), max(m.Queued, s.Queued), max(m.Tried, s.Tried)
	}
}

func (x *fire) grown(after time.Duration) [2]uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	paths := 0
	for _, h := range x.n.Clients {
		if !x.down[h] {
			paths += len(h.Node.Paths())
		}
	}
	x.Logf("after %v: %d goroutines, %d KB, %d paths", after.Truncate(time.Minute), runtime.NumGoroutine(), m.HeapAlloc>>10, paths)
	return [2]uint64{uint64(runtime.NumGoroutine()), m.HeapAlloc}
}

// bounded checks the most that was held.
func (x *fire) bounded() {
	clients := len(x.n.Clients)
	m := &x.most
	if m.Remotes > 2*clients || m.Sessions > 4*clients || m.Contacts > clients || m.Calls > clients || m.Pending > 4*clients || m.Queued > 30*clients || m.Tried > 12*clients {
		x.Errorf("a client held %+v", *m)
	}
}

// quiet checks what is left when nobody has talked for two minutes: each client's inbound paths, and nothing of sessions.
func (x *fire) quiet() {
	for _, h := range x.n.Clients {
		s := h.Endpoint.Sessions.Sizes()
		if s.Remotes+s.Sessions+s.Calls+s.Pending+s.Queued > 0 {
			x.Errorf("%v still holds %+v", h, s)
		}
		kinds := map[path.Kind]int{}
		for _, p := range h.Node.Paths() {
			kinds[p.Kind]++
		}
		if kinds[path.Inbound] > 8 || kinds[path.Aligned] > 0 {
			x.Errorf("%v still has the paths %v", h, kinds)
		}
	}
}

func (x *fire) result() fireResult {
	r := fireResult{faults: x.counts, addresses: x.book.given, most: x.most}
	for _, k := range x.talks {
		r.sent += k.f.Sent
		r.lost += k.f.Lost
		r.late += k.f.Late
		r.cut += k.f.Cut
		r.silences = append(r.silences, k.f.Silences...)
		if k.f.Lost > 0 {
			x.Logf("%v to %v: %d of %d messages are lost", k.f.from, x.remote[k], k.f.Lost, k.f.Sent)
		}
	}
	if r.lost > x.size.mayLose {
		x.Errorf("%d messages are lost", r.lost)
	}
	slices.Sort(r.silences)
	return r
}

// TestUnderFire plays an hour, under the race detector a minute of a smaller network; make soak a day.
func TestUnderFire(t *testing.T) {
	size := wholeFire
	// Nothing was lost in eleven hours. But a flow loses a message for each second that it is silent beyond lastTries after a time without a route, and of about five silences an hour
	// that are longer than 30 s each further 9 s leave a third (52 in those hours, the longest of 65 s): more than 100 are lost once in 10^6 runs, more than 7 once in 10^2. Without the
	// most important of the rules that came of these runs it is up to 1,000; make soak allows none.
	size.mayLose = 100
	if raceEnabled || testing.Short() {
		size = fireSize{relays: 8, services: 2, browsers: 2, flows: 2, lasts: time.Minute, calm: 30 * time.Second, pause: 1200 * time.Millisecond}
	}
	underFire(t, seed(t), size, new(fireResult))
}

var wholeFire = fireSize{relays: 20, services: 6, browsers: 14, flows: 20, lasts: time.Hour, calm: 8 * time.Minute, pause: 15 * time.Second}
