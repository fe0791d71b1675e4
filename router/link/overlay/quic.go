package main

import _ "embed"

const quicPath = "github.com/quic-go/quic-go"

// datagrams makes quic-go hand the datagrams of a connection to router/link, which asks for it with HookDatagrams; without that call, all is as
// before but for the batches, who sends them (direct.go.in), the resets and what a loss means (congestion.go.in). The new code and the reasons are in the .go.in files.
var datagrams = patch{
	of:         "quic-go",
	writtenFor: "v0.65.0",
	edits:      datagramEdits,
	added: map[string][]byte{
		"lokinetd_datagrams.go":                     datagramsAdded,
		"lokinetd_gro.go":                           groAdded,
		"lokinetd_direct.go":                        directAdded,
		"lokinetd_wake.go":                          wakeAdded,
		"lokinetd_strangers.go":                     strangersAdded,
		"internal/ackhandler/lokinetd_datagrams.go": ackhandlerAdded,
		"internal/congestion/lokinetd_accidents.go": congestionAdded,
		"internal/wire/lokinetd_datagrams.go":       wireAdded,
	},
}

var (
	//go:embed datagrams.go.in
	datagramsAdded []byte
	//go:embed gro.go.in
	groAdded []byte
	//go:embed direct.go.in
	directAdded []byte
	//go:embed wake.go.in
	wakeAdded []byte
	//go:embed strangers.go.in
	strangersAdded []byte
	//go:embed ackhandler.go.in
	ackhandlerAdded []byte
	//go:embed congestion.go.in
	congestionAdded []byte
	//go:embed wire.go.in
	wireAdded []byte
)

var datagramEdits = []edit{
	// The way out: what is to be sent is asked for when a packet is made, and settled when the packet is acknowledged or lost.
	{
		file:   "datagram_queue.go",
		decl:   "type datagramQueue struct {",
		marker: "struct {\n",
		after:  "\thooked datagramHook\n\n",
	}, {
		file:   "datagram_queue.go",
		decl:   "func (h *datagramQueue) Peek() *wire.DatagramFrame {",
		marker: "\th.sendMx.Lock()\n",
		before: "\tif h.hooked.is() {\n\t\treturn h.hooked.peek()\n\t}\n",
	}, {
		file:   "datagram_queue.go",
		decl:   "func (h *datagramQueue) Pop() {",
		marker: "\th.sendMx.Lock()\n",
		before: "\tif h.hooked.is() {\n\t\th.hooked.pop()\n\t\treturn\n\t}\n",
	}, {
		file:   "packet_packer.go",
		decl:   "func (p *packetPacker) composeNextPacket(",
		marker: "ackhandler.Frame{Frame: f})",
		swap:   "ackhandler.Frame{Frame: f, Handler: p.datagramQueue.hooked.handler()})",
	}, {
		file:   "packet_packer.go",
		decl:   "func (p *packetPacker) composeNextPacket(",
		marker: "\t\t\t\tp.datagramQueue.Pop()\n\t\t\t\tif p.qlogger != nil {\n",
		swap:   "\t\t\t\tp.datagramQueue.Pop()\n\t\t\t\tp.datagramQueue.hooked.discard(f)\n\t\t\t\tif p.qlogger != nil {\n",
	}, {
		file:   "internal/wire/datagram_frame.go",
		decl:   "type DatagramFrame struct {",
		marker: "struct {\n",
		after:  "\tOwner any\n\n",
	},

	// What is known of losses.
	{
		file:   "internal/ackhandler/sent_packet_handler.go",
		decl:   "func (h *sentPacketHandler) QueueProbePacket(space protocol.PacketNumberSpace) bool {",
		marker: "\th.queueFramesForRetransmission(p)\n",
		before: "\tprobeDatagrams(p)\n",
	}, {
		file:   "internal/ackhandler/sent_packet_handler.go",
		decl:   "func (h *sentPacketHandler) detectSpuriousLosses(ack *wire.AckFrame, ackTime monotime.Time) (_ []protocol.PacketNumber, timeThresholdIncreased bool) {",
		marker: "\tfor _, pn := range spuriousLosses {\n",
		before: "\th.connStats.SpuriousLosses.Add(uint64(len(spuriousLosses)))\n",
	}, {
		file:   "internal/utils/connstats.go",
		decl:   "type ConnectionStats struct {",
		marker: "struct {\n",
		after:  "\tSpuriousLosses atomic.Uint64\n\n",
	},

	// Losses that are none of congestion.
	{
		file:   "internal/congestion/cubic_sender.go",
		decl:   "type cubicSender struct {",
		marker: "struct {\n",
		after:  "\taccidents accidents\n\n",
	}, {
		file:   "internal/congestion/cubic_sender.go",
		decl:   "func newCubicSender(",
		marker: "\tc := &cubicSender{\n",
		after:  "\t\taccidents: accidents{rtt: rttStats},\n\n",
	}, {
		file:   "internal/congestion/cubic_sender.go",
		decl:   "func (c *cubicSender) OnPacketAcked(",
		marker: "\tif c.InRecovery() {\n",
		before: "\tc.accidents.onAcked(ackedPacketNumber, c.largestSentPacketNumber)\n",
	}, {
		file:   "internal/congestion/cubic_sender.go",
		decl:   "func (c *cubicSender) OnCongestionEvent(packetNumber protocol.PacketNumber, lostBytes, priorInFlight protocol.ByteCount) {",
		marker: "\tif c.reno {\n\t\tc.undoState = renoUndoState{\n",
		before: "\tif lostBytes > 0 && c.accidents.onLost() { // 0: by ECN\n" +
			"\t\tc.congestionWindow = max(c.congestionWindow-lostBytes, c.minCongestionWindow())\n" +
			"\t\tc.connStats.CongestionWindow.Store(uint64(c.congestionWindow))\n" +
			"\t\treturn\n" +
			"\t}\n",
	}, {
		file:   "internal/congestion/cubic_sender.go",
		decl:   "func (c *cubicSender) maybeIncreaseCwnd(",
		marker: "\t\tc.numAckedPackets++\n",
		swap:   "\t\tc.numAckedPackets += c.accidents.growth()\n",
	},

	// The way in: a frame is handed over where it lies, in the packet.
	{
		file:   "internal/wire/frame_parser.go",
		decl:   "type FrameParser struct {",
		marker: "struct {\n",
		after:  "\tdatagram DatagramFrame\n\n",
	}, {
		file:   "internal/wire/frame_parser.go",
		decl:   "func (p *FrameParser) ParseDatagramFrame(frameType FrameType, data []byte, v protocol.Version) (*DatagramFrame, int, error) {",
		marker: "parseDatagramFrame(data, frameType, v)",
		swap:   "p.datagram.borrow(data, frameType)",
	}, {
		file:   "datagram_queue.go",
		decl:   "func (h *datagramQueue) HandleDatagramFrame(f *wire.DatagramFrame) {",
		marker: "\tdata := make([]byte, len(f.Data))\n",
		before: "\tif h.hooked.is() {\n\t\th.hooked.receive(f.Data)\n\t\treturn\n\t}\n",
	}, {
		file:   "datagram_queue.go",
		decl:   "func (h *datagramQueue) HandleDatagramFrame(f *wire.DatagramFrame) {",
		marker: "\th.rcvMx.Lock()\n",
		after:  "\tif h.hooked.is() {\n\t\th.rcvMx.Unlock()\n\t\th.hooked.receive(data)\n\t\treturn\n\t}\n",
	}, {
		file:   "connection.go",
		decl:   "func (c *Conn) handlePackets() (wasProcessed bool, _ error) {",
		marker: "\tfor range maxPacketsToProcess {\n",
		before: "\tdefer c.datagramQueue.hooked.received()\n",
	},

	// Batches of equal packets, of any size, go out in one call (GSO); the last may be smaller. A larger one that has been packed already begins the next
	// batch, so two are queued where one was: hence the spare place in the send queue.
	{
		file:   "connection.go",
		decl:   "func (c *Conn) sendPacketsWithGSO(now monotime.Time) error {",
		marker: "\tecn := c.sentPacketHandler.ECNMode(true)\n\tfor {\n\t\tvar dontSendMore bool\n",
		swap:   "\tecn := c.sentPacketHandler.ECNMode(true)\n\tvar segment protocol.ByteCount\n\tfor {\n\t\tvar dontSendMore bool\n\t\tstart := buf.Len()\n",
	}, {
		file:   "connection.go",
		decl:   "func (c *Conn) sendPacketsWithGSO(now monotime.Time) error {",
		marker: "\t\tif !dontSendMore {\n\t\t\tsendMode := c.sentPacketHandler.SendMode(now)\n",
		before: "\t\tif start > 0 && size > segment {\n" +
			"\t\t\tbuf, start = c.sendBatch(buf, start, segment, ecn), 0\n" +
			"\t\t\tdontSendMore = c.sendQueue.WouldBlock()\n" +
			"\t\t}\n" +
			"\t\tif start == 0 {\n\t\t\tsegment = size\n\t\t}\n\n",
	}, {
		file:   "connection.go",
		decl:   "func (c *Conn) sendPacketsWithGSO(now monotime.Time) error {",
		marker: "size == maxSize && nextECN == ecn && buf.Len()+maxSize <= buf.Cap()",
		swap:   "size == segment && nextECN == ecn && buf.Len()+maxSize <= buf.Cap() && buf.Len() < maxBatch*segment",
	}, {
		file:   "connection.go",
		decl:   "func (c *Conn) sendPacketsWithGSO(now monotime.Time) error {",
		marker: "\t\tc.sendQueue.Send(buf, uint16(maxSize), ecn)\n",
		swap:   "\t\tc.sendBatch(buf, buf.Len(), segment, ecn)\n",
	}, {
		file:   "send_queue.go",
		decl:   "func newSendQueue(conn sendConn) sender {",
		marker: "make(chan queueEntry, sendQueueCapacity)",
		swap:   "make(chan queueEntry, sendQueueCapacity+1)",
	}, {
		file:   "send_queue.go",
		decl:   "func (h *sendQueue) Send(p *packetBuffer, gsoSize uint16, ecn protocol.ECN) {",
		marker: "len(h.queue) == sendQueueCapacity",
		swap:   "len(h.queue) >= sendQueueCapacity",
	}, {
		file:   "send_queue.go",
		decl:   "func (h *sendQueue) WouldBlock() bool {",
		marker: "len(h.queue) == sendQueueCapacity",
		swap:   "len(h.queue) >= sendQueueCapacity",
	},

	// Packets go out from the connection's own goroutine; the queue is for what the socket has no room for.
	{
		file:   "send_queue.go",
		decl:   "type sendQueue struct {",
		marker: "struct {\n",
		after:  "\tunsent atomic.Int32 // given to Run and not sent yet\n\tonce   *oobConn     // sends at once or not at all; made by direct\n\n",
	}, {
		file:   "send_queue.go",
		decl:   "import (",
		marker: "\t\"net\"\n",
		after:  "\t\"sync/atomic\"\n",
	}, {
		file:   "send_queue.go",
		decl:   "func (h *sendQueue) Send(p *packetBuffer, gsoSize uint16, ecn protocol.ECN) {",
		marker: "\tselect {\n\tcase h.queue <-",
		swap:   "\tif h.direct(p, gsoSize, ecn) {\n\t\treturn\n\t}\n\th.unsent.Add(1)\n\tselect {\n\tcase h.queue <-",
	}, {
		file:   "send_queue.go",
		decl:   "func (h *sendQueue) Run() error {",
		marker: "\t\t\te.buf.Release()\n",
		after:  "\t\t\th.unsent.Add(-1)\n",
	},

	// What the kernel received in one piece it hands over in one piece (GRO), and we cut it.
	{
		file:   "sys_conn_oob.go",
		decl:   "type oobConn struct {",
		marker: "struct {\n",
		after:  "\tgro gro\n\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func newConn(c OOBCapablePacketConn, supportsDF bool) (*oobConn, error) {",
		marker: "\t\tif needsPacketInfo {\n\t\t\terrPIIPv4 =",
		before: "\t\tenableGRO(fd)\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\tif len(c.messages) == int(c.readPos) {",
		before: "\tif c.gro.more() {\n\t\treturn c.gro.next(), nil\n\t}\n",
	}, {
		file: "sys_conn_oob.go",
		decl: "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\t\t\tbuffer := getPacketBuffer()\n" +
			"\t\t\tbuffer.Data = buffer.Data[:protocol.MaxPacketBufferSize]\n" +
			"\t\t\tc.buffers[i] = buffer\n" +
			"\t\t\tc.messages[i].Buffers[0] = c.buffers[i].Data\n",
		swap: "\t\t\tc.messages[i].Buffers[0] = c.gro.room(int(i))\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\tbuffer := c.buffers[c.readPos]\n",
		swap:   "\tsegment := 0\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\t\tbuffer:     buffer,\n",
		swap:   "\t\tbuffer:     nil,\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\t\tif hdr.Level == unix.IPPROTO_IP {\n",
		before: "\t\tif hdr.Level == unix.IPPROTO_UDP {\n\t\t\tsegment = groSegment(hdr.Type, body)\n\t\t}\n",
	}, {
		file:   "sys_conn_oob.go",
		decl:   "func (c *oobConn) ReadPacket() (receivedPacket, error) {",
		marker: "\treturn p, nil\n",
		swap:   "\treturn c.gro.cut(p, segment), nil\n",
	}, {
		file:   "received_packet_queue.go",
		decl:   "func (q *receivedPacketQueue) Push(p receivedPacket, source *pathReceiver) bool {",
		marker: "q.main.Len() >= protocol.MaxConnUnprocessedPackets",
		swap:   "q.main.Len() >= int(unprocessed.Load())",
	},

	// A connection is woken once for all the packets of it that one read has brought.
	{
		file:   "transport.go",
		decl:   "type Transport struct {",
		marker: "struct {\n",
		after:  "\tunwoken *Conn // by listen\n\n",
	}, {
		file:   "transport.go",
		decl:   "func (t *Transport) handlePacket(p receivedPacket) {",
		marker: "\t\thandler.handlePacket(p)\n",
		swap:   "\t\tt.pass(handler, p)\n",
	}, {
		file:   "transport.go",
		decl:   "func (t *Transport) listen(conn rawConn) {",
		marker: "\t\tt.handlePacket(p)\n",
		after:  "\t\tif o, ok := conn.(*oobConn); !ok || !o.more() {\n\t\t\tt.wake()\n\t\t}\n",
	},

	// A PING of the reference is 42 bytes long; the reset that answers it must be shorter (protocol 5 section 5.2).
	{
		file:   "transport.go",
		decl:   "func (t *Transport) maybeSendStatelessReset(p receivedPacket) (statelessResetQueued bool) {",
		marker: "len(p.data) <= protocol.MinStatelessResetSize",
		swap:   "len(p.data) < protocol.MinStatelessResetSize",
	}, {
		file:   "transport.go",
		decl:   "func (t *Transport) sendStatelessReset(p receivedPacket) {",
		marker: "make([]byte, protocol.MinStatelessResetSize-16, protocol.MinStatelessResetSize)",
		swap:   "make([]byte, min(protocol.MinStatelessResetSize, len(p.data)-1)-16, protocol.MinStatelessResetSize)",
	},

	// First packets of handshakes are dropped where they are read when there are too many.
	{
		file:   "transport.go",
		decl:   "type Transport struct {",
		marker: "struct {\n",
		after:  "\tstrangers strangers\n\n",
	}, {
		file:   "transport.go",
		decl:   "func (t *Transport) handlePacket(p receivedPacket) {",
		marker: "\tt.mutex.Lock()\n",
		before: "\tif !t.strangers.admit(p) {\n\t\tp.buffer.Release()\n\t\treturn\n\t}\n",
	},
}
