package link

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/router/key"
)

// Limits bound what peers can make a node hold. A zero field means its default.
type Limits struct {
	Connections int   // inbound, in all: 4096
	PerIP       int   // inbound, of one IPv4 address or IPv6 /64 network: 128
	Handshakes  int   // inbound, not finished yet: 256; from a quarter of it on, diallers must first prove their address (Retry)
	Rate        int   // inbound handshakes begun each second, in all, and eight seconds' worth at once: 50 for each core
	SourceRate  int   // the same of one IPv4 address or IPv6 /64 network, and 128 at once: 4
	Strangers   int   // packets each second that may begin a handshake, once without and once with a proof of the address: 1000 for each core
	Requests    int   // incoming requests of one connection that wait for an answer: 1024
	AllRequests int   // the same in all: 32768
	StreamQueue int   // bytes of messages that wait for one peer to read: 12 MiB; a whole message is always allowed when nothing else waits
	Memory      int64 // bytes of unfinished messages and messages that wait, of all connections, the first 64 KiB of each not counted: 256 MiB
	QueueBytes  int   // datagrams that wait to be sent on one connection, bytes: 2,000,000
	QueueCount  int   // the same, number: 1024
	NoTurns     bool  // the readers of many connections take as much of the processor as they can get
}

func (l Limits) withDefaults() Limits {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.Connections, 4096)
	set(&l.PerIP, 128)
	set(&l.Handshakes, 256)
	set(&l.Rate, 50*runtime.NumCPU())
	set(&l.SourceRate, 4)
	set(&l.Strangers, 1000*runtime.NumCPU())
	set(&l.Requests, 1024)
	set(&l.AllRequests, 32768)
	set(&l.StreamQueue, 12<<20)
	set(&l.QueueBytes, 2_000_000)
	set(&l.QueueCount, 1024)
	if l.Memory == 0 {
		l.Memory = 256 << 20
	}
	return l
}

// Config is what a QUIC endpoint is made from.
type Config struct {
	// Secret is the identity that a relay shows. A client needs none and shows none.
	Secret *key.Secret
	// Accept inbound connections: relays do.
	Accept bool
	// Registered says which relays belong to the network; others cannot connect as relays. It is called concurrently and must not block. nil: none do.
	Registered func(key.Public) bool
	Limits     Limits
	Log        *slog.Logger
}

// QUIC is a Wire over one UDP socket, which both listens and dials.
type QUIC struct {
	pc     net.PacketConn
	config Config
	limits Limits
	log    *slog.Logger
	tr     *quic.Transport

	ignoreTokens bool // for tests: relays that send no NEW_TOKEN
	original     bool // for tests: take quic-go for the original one

	running atomic.Bool
	started chan struct{} // closed when Dial may go on; handler and ctx are set then
	stopped chan struct{} // closed when Run has returned
	handler Handler
	ctx     context.Context // of Run
	fail    context.CancelCauseFunc

	memory  budget
	refused atomic.Uint64
	unsent  atomic.Uint64
	waiting atomic.Int64 // incoming requests without an answer yet
	kept    atomic.Int64 // buffers of datagrams that may have to be sent again
	queued  atomic.Int64 // datagrams that wait to be sent
	halves  atomic.Int64 // of datagrams, kept beyond joinFree a connection
	crowd   crowd
	cork    cork
	turns   *turns // of the readers; nil: a client's, who has few and trusts itself

	mu       sync.Mutex
	closing  bool
	conns    map[*conn]struct{}
	active   sync.WaitGroup // connections and dials; none is added once closing is set
	admitted map[netip.Prefix]int
	doors    doors
	inbound  int
	shaking  int
	guests   sync.WaitGroup // admissions
}

// Times of protocol 2 section 1 and 3.2.
const (
	idleRelay     = 33 * time.Second
	idleClient    = 63 * time.Second
	idleBootstrap = 10 * time.Second
	dialTimeout   = 10 * time.Second
	// pingAfter is how long a dialler waits for a relay's NEW_TOKEN, which is to come one round trip after the handshake, before it asks for another sign.
	pingAfter = 500 * time.Millisecond
)

// NewQUIC makes an endpoint on pc and owns pc from then on; Run closes it. It starts nothing. It fails when the program was
// built without raw public keys (SelfTest).
func NewQUIC(pc net.PacketConn, config Config) (*QUIC, error) {
	if err := SelfTest(); err != nil {
		return nil, err
	}
	if config.Accept && config.Secret == nil {
		return nil, errors.New("link: cannot accept connections without an identity")
	}
	if !addrPort(pc.LocalAddr()).IsValid() {
		return nil, fmt.Errorf("link: %v is no UDP address", pc.LocalAddr())
	}
	resetKey, err := statelessResetKey(config.Secret)
	if err != nil {
		return nil, err
	}
	q := &QUIC{
		pc: pc, config: config, limits: config.Limits.withDefaults(), log: config.Log,
		started: make(chan struct{}), stopped: make(chan struct{}),
		conns: map[*conn]struct{}{}, admitted: map[netip.Prefix]int{},
	}
	if q.log == nil {
		q.log = slog.New(slog.DiscardHandler)
	}
	q.memory.max = q.limits.Memory
	q.doors.set(q.limits.Rate, q.limits.SourceRate)
	if config.Accept && !q.limits.NoTurns {
		q.turns = new(turns)
	}
	if u, ok := pc.(*net.UDPConn); ok {
		raiseBuffers(u) // SocketBuffers tells what came of it
		pc = steadyConn{u, &q.unsent}
	}
	q.tr = &quic.Transport{
		Conn:                pc,
		ConnectionIDLength:  20,
		StatelessResetKey:   resetKey,
		ConnContext:         q.admit,
		VerifySourceAddress: q.underLoad,
	}
	if t, ok := any(q.tr).(strangerLimiter); ok && config.Accept {
		t.LimitStrangers(q.limits.Strangers)
	}
	return q, nil
}

// steadyConn hides that a packet could not be sent: quic-go gives up a connection at once then, but the network may be back
// a second later, and a packet that was not sent is no worse than one that was lost.
type steadyConn struct {
	*net.UDPConn
	unsent *atomic.Uint64
}

func (c steadyConn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = c.UDPConn.WriteMsgUDP(b, oob, to)
	if err != nil && passing(err) {
		c.unsent.Add(1)
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

// passing says whether an error of sending is of the network's or the firewall's state, and not of the packet (too large) or of the socket.
func passing(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL, syscall.EPERM, syscall.ENOBUFS,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// statelessResetKey is the same after a restart, so that peers notice it at once. Its only use is here, so it needs no
// agreement with anybody. Without an identity it is random.
func statelessResetKey(s *key.Secret) (*quic.StatelessResetKey, error) {
	var k quic.StatelessResetKey
	if s == nil {
		rand.Read(k[:])
		return &k, nil
	}
	seed := s.Seed()
	b, err := hkdf.Key(sha256.New, seed[:], nil, "lokinetd link: stateless reset key", len(k))
	clear(seed[:])
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	copy(k[:], b)
	return &k, nil
}

// dialConfig holds the settings of protocol 5 section 4.
func dialConfig(idle time.Duration) *quic.Config {
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           dialTimeout / 2, // quic-go doubles it for the whole handshake
		MaxIdleTimeout:                 idle,
		InitialStreamReceiveWindow:     6 << 20,
		MaxStreamReceiveWindow:         16 << 20,
		InitialConnectionReceiveWindow: 15 << 20,
		MaxConnectionReceiveWindow:     24 << 20,
		MaxIncomingStreams:             32,
		MaxIncomingUniStreams:          -1,
		RequireStreamCreditRelease:     true, // we never do: no streams beyond the 32
		EnableDatagrams:                true,
		InitialPacketSize:              minM, // what the reference starts at: 1280 does not pass everywhere
	}
}

// listenConfig is dialConfig with smaller windows. A window is memory that a peer can make us hold by leaving a gap in its stream, and anybody can connect; those
// who use what they get find theirs enlarged by quic-go, to 40 MB/s at 150 ms.
func listenConfig() *quic.Config {
	c := dialConfig(max(idleRelay, idleClient))
	c.InitialStreamReceiveWindow = 1 << 20
	c.MaxStreamReceiveWindow = 6 << 20
	c.InitialConnectionReceiveWindow = 3 << 19
	c.MaxConnectionReceiveWindow = 8 << 20
	return c
}

func idleTimeout(k Kind) time.Duration {
	switch k {
	case Relay:
		return idleRelay
	case Client:
		return idleClient
	}
	return idleBootstrap
}

func (q *QUIC) LocalAddr() netip.AddrPort { return addrPort(q.pc.LocalAddr()) }

// Run implements Wire. It returns nil when ctx ended.
func (q *QUIC) Run(ctx context.Context, h Handler) error {
	if q.running.Swap(true) {
		return errors.New("link: Run called twice")
	}
	defer close(q.stopped)
	defer q.pc.Close()
	ctx, q.fail = context.WithCancelCause(ctx)
	defer q.fail(nil)
	q.ctx, q.handler = ctx, h

	var accepting sync.WaitGroup
	var listener *quic.Listener
	if q.config.Accept {
		var err error
		listener, err = q.tr.Listen(listenTLS(q.config.Secret, q.config.Registered), listenConfig())
		if err != nil {
			return fmt.Errorf("link: %w", err)
		}
		accepting.Go(func() { q.acceptAll(listener) })
		u, real := q.pc.(*net.UDPConn)
		if t, ok := any(q.tr).(strangerLimiter); ok && real {
			accepting.Go(func() { q.sift(ctx, u, t) })
		}
	}
	close(q.started)
	<-ctx.Done()

	// The order of the end: take no more, tell the peers, and only then stop the transport, which tells nobody anything.
	if listener != nil {
		listener.Close()
		accepting.Wait()
	}
	q.mu.Lock()
	q.closing = true
	for c := range q.conns {
		c.Close(CodeNormal)
	}
	q.mu.Unlock()
	q.active.Wait()
	q.tr.Close()
	q.guests.Wait()
	if err := context.Cause(ctx); errors.Is(err, errSocket) {
		return err
	}
	return nil
}

var errSocket = errors.New("link: the socket failed")

// failed ends Run when err says that the socket is gone.
func (q *QUIC) failed(err error) {
	if errors.Is(err, quic.ErrTransportClosed) {
		q.fail(fmt.Errorf("%w: %w", errSocket, err))
	}
}

// enter counts one more dial or connection that Run waits for; false when there are to be no more.
func (q *QUIC) enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closing {
		q.active.Add(1)
	}
	return !q.closing
}

// start runs c; it is counted in active already.
func (q *QUIC) start(c *conn, stream *quic.Stream) {
	q.mu.Lock()
	q.conns[c] = struct{}{}
	closing := q.closing
	q.mu.Unlock()
	if closing {
		c.Close(CodeNormal)
	}
	go func() {
		defer q.active.Done()
		c.run(stream)
		q.mu.Lock()
		delete(q.conns, c)
		q.mu.Unlock()
	}()
}

// Dial implements Wire. The relay accepts or refuses us only after quic-go's Dial has returned, and quic-go does not tell when. The cheapest sign is
// the NEW_TOKEN that relays send when their side of the handshake is complete; anything else that they send in 1-RTT
// packets is one too, so the reply to a ping is asked for when no token comes.
func (q *QUIC) Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind Kind) (Conn, error) {
	if kind == Relay && q.config.Secret == nil || kind >= kinds {
		return nil, fmt.Errorf("link: cannot dial as %v", kind)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	select {
	case <-q.started:
	case <-q.stopped:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, timeoutOf(ctx)
	}
	if !q.enter() {
		return nil, ErrClosed
	}
	c, err := q.dial(ctx, cancel, to, remote, kind)
	if err != nil {
		q.log.Debug("dial failed", "relay", remote, "address", to, "kind", kind, "error", err)
		return nil, err
	}
	return c, nil
}

// dial owns one count of active, which it hands on to the connection's start.
func (q *QUIC) dial(ctx context.Context, cancel func(), to netip.AddrPort, remote key.Public, kind Kind) (Conn, error) {
	defer context.AfterFunc(q.ctx, cancel)()
	accepted := make(chan struct{})
	accept := sync.OnceFunc(func() { close(accepted) })
	conf := dialConfig(idleTimeout(kind))
	if !q.ignoreTokens {
		conf.TokenStore = tokenSign(accept)
	}
	qc, err := q.tr.Dial(ctx, net.UDPAddrFromAddrPort(to), dialTLS(kind, q.config.Secret, remote), conf)
	if err != nil {
		q.active.Done()
		q.failed(err)
		return nil, q.dialError(ctx, reasonOf(err))
	}
	stream, err := openStream(qc)
	if err != nil {
		qc.CloseWithError(CodeNormal, "")
		q.active.Done()
		return nil, err
	}
	c := newConn(q, qc, kind, remote, true)
	c.accept = accept
	c.out.nudge()
	q.start(c, stream)

	ping := time.NewTimer(pingAfter)
	defer ping.Stop()
	for {
		select {
		case <-accepted:
			if !c.opened() {
				return nil, c.ending()
			}
			return c, nil
		case <-ping.C:
			c.Command("ping", nil)
		case <-c.ctx.Done():
			return nil, c.ending()
		case <-ctx.Done():
			c.Close(CodeNormal)
			return nil, q.dialError(ctx, nil)
		}
	}
}

// dialError prefers the end of Run and of ctx to err.
func (q *QUIC) dialError(ctx context.Context, err error) error {
	switch {
	case q.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return timeoutOf(ctx)
	}
	return err
}

// openStream opens stream 0.
func openStream(qc *quic.Conn) (*quic.Stream, error) {
	if !qc.ConnectionState().SupportsDatagrams.Remote {
		return nil, errNoDatagrams
	}
	s, err := qc.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("link: peer allows no stream: %w", err)
	}
	return s, nil
}

var errNoDatagrams = errors.New("link: peer takes no datagrams")

// tokenSign is a quic.TokenStore that stores nothing and reports that a token came.
type tokenSign func()

func (f tokenSign) Pop(string) *quic.ClientToken  { return nil }
func (f tokenSign) Put(string, *quic.ClientToken) { f() }

// admission is one inbound connection in the counts, from its first packet until it is gone.
type admission struct {
	network netip.Prefix
	shaking bool
}

type admissionKey struct{}

var errFull = errors.New("link: too many connections")

// admit counts an inbound connection, or refuses it. quic-go ends ctx when the connection is gone, however far it came.
func (q *QUIC) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	a := &admission{network: NetworkOf(addrPort(info.RemoteAddr).Addr()), shaking: true}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closing || q.inbound >= q.limits.Connections || q.shaking >= q.limits.Handshakes || q.admitted[a.network] >= q.limits.PerIP || !q.doors.Take(a.network, 1, time.Now()) {
		q.refused.Add(1)
		return nil, errFull
	}
	q.inbound++
	q.share()
	q.shaking++
	q.admitted[a.network]++
	q.guests.Add(1)
	context.AfterFunc(ctx, func() {
		defer q.guests.Done()
		q.mu.Lock()
		defer q.mu.Unlock()
		q.shook(a)
		q.inbound--
		q.share()
		if q.admitted[a.network]--; q.admitted[a.network] == 0 {
			delete(q.admitted, a.network)
		}
	})
	return context.WithValue(ctx, admissionKey{}, a), nil
}

// unreadAll and unreadLeast bound how many packets of 1.5 kB connections hold that were read from the socket and not yet processed: so many in all, but each so many, which is
// what the kernel hands over at once. Alone, one may have 1,024.
const (
	unreadAll   = 1 << 17
	unreadLeast = 64
)

// share divides that among the connections. Callers hold mu.
func (q *QUIC) share() {
	if t, ok := any(q.tr).(interface{ LimitUnprocessed(packets int) }); ok {
		t.LimitUnprocessed(q.unread())
	}
}

func (q *QUIC) unread() int { return max(unreadAll/max(1, q.inbound), unreadLeast) }

// shook notes that the handshake of a has ended. Callers hold mu.
func (q *QUIC) shook(a *admission) {
	if a.shaking {
		a.shaking = false
		q.shaking--
	}
}

// NetworkOf is what one party has for certain: an IPv4 address, or an IPv6 /64.
func NetworkOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// underLoad says whether a dialler must prove its address first, at the cost of a round trip: else a few spoofed packets use up all handshakes.
func (q *QUIC) underLoad(from net.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.shaking >= q.limits.Handshakes/4 || q.doors.doubts(NetworkOf(addrPort(from).Addr()), time.Now())
}

func (q *QUIC) acceptAll(l *quic.Listener) {
	for {
		qc, err := l.Accept(context.Background()) // until l is closed
		if err != nil {
			q.failed(err)
			return
		}
		if a, ok := qc.Context().Value(admissionKey{}).(*admission); ok {
			q.mu.Lock()
			q.shook(a)
			q.mu.Unlock()
		}
		if err := q.acceptOne(qc); err != nil {
			q.log.Debug("connection refused", "address", addrPort(qc.RemoteAddr()), "error", err)
			qc.CloseWithError(CodeNormal, "")
		}
	}
}

// acceptOne takes a connection whose handshake is complete: a relay's key has been verified (listenTLS).
func (q *QUIC) acceptOne(qc *quic.Conn) (err error) {
	s := qc.ConnectionState()
	kind, ok := kindOf(s.TLS.NegotiatedProtocol)
	if !ok {
		return errALPN
	}
	if !s.SupportsDatagrams.Remote {
		return errNoDatagrams
	}
	var remote key.Public // a client has none, even if it showed a key
	if kind == Relay {
		if remote, err = peerKey(s.TLS); err != nil {
			return err
		}
	}
	if !q.enter() {
		return ErrClosed
	}
	c := newConn(q, qc, kind, remote, false)
	c.opened()
	q.start(c, nil)
	return nil
}

// AwaitRoom is the back-pressure of the whole endpoint: it returns when no connection has more than about 5 ms of datagrams waiting, or after most,
// or when ctx ends. Who has packets that can wait elsewhere (netif, behind the TUN) calls it before each batch. most bounds what one neighbour
// that is stuck can cost the others.
func (q *QUIC) AwaitRoom(ctx context.Context, most time.Duration) {
	room := q.crowd.wait()
	if room == nil {
		return
	}
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-room:
	case <-t.C:
	case <-ctx.Done():
	}
}

// Crowded says whether AwaitRoom would wait.
func (q *QUIC) Crowded() bool { return q.crowd.wait() != nil }

// Cork says that many datagrams are about to be sent: connections are woken for 16 at a time, or by Uncork, which must follow soon. Corks
// of several goroutines do not add up.
func (q *QUIC) Cork() { q.cork.put() }

// Uncork ends a Cork.
func (q *QUIC) Uncork() { q.cork.pull() }

// EndpointStats are figures of a QUIC endpoint. The first six are of now, the others count up.
type EndpointStats struct {
	Inbound, Handshakes int   // accepted connections, of them those whose handshake is going on
	Waiting             int   // incoming requests without an answer yet
	Kept                int   // buffers of datagrams that may have to be sent again
	Halves              int   // halves of datagrams that wait for the other, beyond 256 a connection
	Memory              int64 // bytes counted against Limits.Memory

	Refused   uint64 // connections over the limits
	Strangers uint64 // packets of no connection over Limits.Strangers, not looked at
	Unsent    uint64 // UDP packets that the system refused to send
}

// Stats may be called at any time.
func (q *QUIC) Stats() EndpointStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := EndpointStats{
		Inbound: q.inbound, Handshakes: q.shaking, Waiting: int(q.waiting.Load()),
		Kept: int(q.kept.Load()), Halves: int(q.halves.Load()), Memory: q.memory.used.Load(),
		Refused: q.refused.Load(), Unsent: q.unsent.Load(),
	}
	if t, ok := any(q.tr).(strangerLimiter); ok {
		s.Strangers = t.StrangersDropped()
	}
	return s
}

// strangerLimiter is what the changed quic-go can do about first packets of handshakes (overlay).
type strangerLimiter interface {
	LimitStrangers(perSecond int)
	StrangersDropped() uint64
}
