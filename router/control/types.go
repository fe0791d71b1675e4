package control

import "time"

// Schema is the number that every answer carries; it changes only when a field
// changes its meaning or goes.
const Schema = 1

// State is the one word for how the daemon is.
type State string

const (
	Starting State = "starting" // not yet connected since the start
	Ready    State = "ready"    // does its job
	Offline  State = "offline"  // was ready, is not now
)

// Status is the answer to GET /v1/status.
type Status struct {
	Schema    int               `json:"schema"`
	Version   string            `json:"version"`
	Role      string            `json:"role"` // client or relay
	State     State             `json:"state"`
	Reason    string            `json:"reason,omitempty"` // why not ready
	StartedAt time.Time         `json:"started_at"`       // when the process was, to 10 ms
	ReadyAt   *time.Time        `json:"ready_at,omitempty"`
	Timeline  []Stage           `json:"timeline"` // what happened first when, from exec on; what has not happened is missing
	Network   Network           `json:"network"`
	Endpoints []Endpoint        `json:"endpoints"`
	NotRun    []NotRun          `json:"not_run,omitempty"` // endpoints of the configuration that are not there
	Edges     []Edge            `json:"edges"`
	Paths     []Path            `json:"paths"`
	Sessions  []Session         `json:"sessions"`
	Tun       *Tun              `json:"tun,omitempty"`
	Proxy     *Proxy            `json:"proxy,omitempty"` // in the place of Tun and DNS
	DNS       *DNS              `json:"dns,omitempty"`
	Buffers   *Buffers          `json:"socket_buffers,omitempty"`
	Relay     *Relay            `json:"relay,omitempty"`
	Traffic   Traffic           `json:"traffic"`
	Drops     map[string]uint64 `json:"drops"`      // by reason, only those that happened
	NotHidden []string          `json:"not_hidden"` // what this daemon does not hide, in plain words
	Warnings  []string          `json:"warnings"`   // what somebody should look after, and how
}

// Network is the network that the daemon belongs to and what it knows of it.
type Network struct {
	Name     string `json:"name"`
	ID       uint64 `json:"id"`
	Serial   uint64 `json:"serial,omitempty"`  // of the network file
	Known    int    `json:"relays_known"`      // relay keys believed to belong to the network
	Contacts int    `json:"relays_contacts"`   // relays whose contact is known
	Private  bool   `json:"private_addresses"` // non-public addresses are accepted
}

// Endpoint is one identity of the daemon.
type Endpoint struct {
	Name         string     `json:"name"`
	Kind         string     `json:"kind"` // browsing, service or relay
	Address      string     `json:"address"`
	IPv4         string     `json:"ipv4,omitempty"`
	IPv6         string     `json:"ipv6,omitempty"`
	Ports        []string   `json:"ports,omitempty"`
	InboundPaths int        `json:"inbound_paths"`
	InboundWant  int        `json:"inbound_paths_wanted"`
	PublishedAt  *time.Time `json:"published_at,omitempty"`
	Sessions     int        `json:"sessions"`
	Traffic      Traffic    `json:"traffic"`

	// Of a service.

	Forwards       []string `json:"forwards,omitempty"`         // ports that lead to a local address: "tcp/80 -> 127.0.0.1:8080"
	Names          []string `json:"names,omitempty"`            // that the file of a private network gives to it
	ClientsFrom    string   `json:"clients_from,omitempty"`     // the folder that says who may call; none: everybody
	Clients        int      `json:"clients,omitempty"`          // that may call, by that folder
	MaxSessions    int      `json:"max_sessions,omitempty"`     //
	MaxNewSessions int      `json:"max_new_sessions,omitempty"` // a second
	Refused        uint64   `json:"refused,omitempty"`          // calls of who may not
	TooMany        uint64   `json:"too_many,omitempty"`         // calls beyond the limits
}

// NotRun is an endpoint that the daemon does without, because its key file cannot be read or made.
type NotRun struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`   // browsing or service
	Reason string `json:"reason"` // with the file
	Advice string `json:"advice"`
}

// Edge is a relay that the daemon is connected to. Bytes are those of the UDP packets.
type Edge struct {
	Relay    string    `json:"relay"`
	Address  string    `json:"address"` // IP and UDP port
	Since    time.Time `json:"since"`
	RTTms    float64   `json:"rtt_ms"`
	BytesIn  uint64    `json:"bytes_in"`
	BytesOut uint64    `json:"bytes_out"`
}

// Path is one onion path that the daemon built.
type Path struct {
	Kind      string    `json:"kind"` // inbound, or to a client or a relay
	Endpoint  string    `json:"endpoint"`
	State     string    `json:"state"` // building, up or retired
	Hops      []string  `json:"hops"`  // edge first
	ExpiresAt time.Time `json:"expires_at"`
	RTTms     float64   `json:"rtt_ms"`
	JitterMs  float64   `json:"jitter_ms"`
}

// Session is one end-to-end session.
type Session struct {
	Remote       string    `json:"remote"`
	Endpoint     string    `json:"endpoint"`
	Direction    string    `json:"direction"` // out or in
	State        string    `json:"state"`
	Handshake    string    `json:"handshake,omitempty"` // 1.1; or 1.0, which is not forward secret; "" while there is none yet
	Since        time.Time `json:"since"`
	LastActivity time.Time `json:"last_activity"`
	Hops         []string  `json:"hops,omitempty"` // of the path that our packets take, edge first; none while there is no path
	BytesIn      uint64    `json:"bytes_in"`
	BytesOut     uint64    `json:"bytes_out"`
}

// Proxy is how programs reach the network where there is no network interface.
type Proxy struct {
	SOCKS            []string `json:"socks"` // addresses
	HTTP             []string `json:"http"`
	Open             int      `json:"open"`    // connections of programs now
	Opened           uint64   `json:"opened"`  // that reached a remote
	Failed           uint64   `json:"failed"`  // that did not
	Refused          uint64   `json:"refused"` // requests for what is not ours
	Full             uint64   `json:"full"`    // closed because there were too many
	Datagrams        uint64   `json:"datagrams"`
	DatagramsDropped uint64   `json:"datagrams_dropped"`
}

// Tun is the daemon's network interface.
type Tun struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"`
	IPv6 bool   `json:"ipv6"` // false where the host has IPv6 switched off
	// NoFirewall says why there is no firewall table behind the unreachable routes.
	NoFirewall string `json:"no_firewall,omitempty"`
}

// Buffers are what the kernel has granted of the UDP socket's buffers.
type Buffers struct {
	Receive int `json:"receive_bytes"`
	Send    int `json:"send_bytes"`
	Wanted  int `json:"wanted_bytes"` // of each
}

// DNS is the daemon's name server.
type DNS struct {
	Listen   []string          `json:"listen"`
	Upstream []string          `json:"upstream"`
	Answers  map[string]uint64 `json:"answers"` // by rcode
	Host     *HostDNS          `json:"host,omitempty"`
}

// HostDNS is how programs of the host come to ask the name server.
type HostDNS struct {
	Method   string   `json:"method"` // "resolved", "delegate", "networkmanager", "resolvconf", "file", "off" or "none"
	Why      []string `json:"why"`
	InEffect bool     `json:"in_effect"`
	Problem  string   `json:"problem,omitempty"`
	Advice   string   `json:"advice,omitempty"`
}

// Relay is what only a relay has to tell.
type Relay struct {
	PublicAddress string     `json:"public_address"`
	Registered    bool       `json:"registered"`
	ContactAt     *time.Time `json:"contact_at,omitempty"` // last time that our own contact was signed
	Peers         int        `json:"peers"`                // relays connected
	Clients       int        `json:"clients"`              // client connections
	TransitHops   int        `json:"transit_hops"`
	StoredClients int        `json:"stored_contacts"` // client contacts kept for others
}

// Traffic counts IP packets carried in sessions, and their bytes, for a client;
// link datagrams for a relay.
type Traffic struct {
	PacketsIn  uint64 `json:"packets_in"`
	PacketsOut uint64 `json:"packets_out"`
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
}

// RelayInfo is one known relay, an element of GET /v1/relays.
type RelayInfo struct {
	Relay     string    `json:"relay"`
	Address   string    `json:"address,omitempty"`
	Version   string    `json:"version,omitempty"`
	SignedAt  time.Time `json:"signed_at,omitzero"`
	Known     bool      `json:"known"` // its key belongs to the network
	Connected bool      `json:"connected"`
}

// Relays is the answer to GET /v1/relays.
type Relays struct {
	Schema int         `json:"schema"`
	Relays []RelayInfo `json:"relays"`
}

// Stage is one step of an action and when it was done, counted from its start.
type Stage struct {
	Name string  `json:"name"`
	AtMs float64 `json:"at_ms"`
	Note string  `json:"note,omitempty"`
}

// Resolved is the answer to GET /v1/resolve?name=.
type Resolved struct {
	Schema  int     `json:"schema"`
	Name    string  `json:"name"`
	Address string  `json:"address"`
	IPv4    string  `json:"ipv4,omitempty"`
	IPv6    string  `json:"ipv6,omitempty"`
	Relays  int     `json:"relays_asked,omitempty"` // for a registered name: asked, and how many agreed
	Agreed  int     `json:"relays_agreed,omitempty"`
	Stages  []Stage `json:"stages"`
}

// Pinged is the answer to POST /v1/ping?name=&count=.
type Pinged struct {
	Schema  int       `json:"schema"`
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Stages  []Stage   `json:"stages"`
	Sent    int       `json:"sent"`
	RTTms   []float64 `json:"rtt_ms"` // one element an answer
}

// Log is the answer to GET /v1/log: what was logged lately at info and above, the oldest first, without what it was about.
type Log struct {
	Schema int       `json:"schema"`
	Lines  []LogLine `json:"lines"`
}

// LogLine is the constant part of one record.
type LogLine struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Module  string    `json:"module,omitempty"`
	Message string    `json:"message"`
}

// Kinds of events.
const (
	EventState        = "state"            // State, and Reason when it is not Ready; the first event of every stream, and each change
	EventEdgeUp       = "edge_up"          // Relay, Address
	EventEdgeDown     = "edge_down"        //
	EventPathUp       = "path_up"          // Endpoint, Kind, Hops
	EventPathDown     = "path_down"        // likewise, and Reason
	EventSessionUp    = "session_up"       // Endpoint, Remote, Direction, Hops
	EventSessionDown  = "session_down"     // likewise
	EventSwitched     = "session_switched" // likewise: our packets take another path
	EventEndpointUp   = "endpoint_up"      // Endpoint, Address: a service was added
	EventEndpointDown = "endpoint_down"    // likewise: one was removed
	EventPublished    = "published"        // Endpoint, Address: others can find the service
	EventUnpublished  = "unpublished"      // likewise: they cannot any more
	EventResolver     = "resolver"         // Method, InEffect, Reason: how programs of this host come to ask the name server
	EventLost         = "lost"             // Lost: so many events came faster than they were read, and are not told
)

// Event is one line of the answer to GET /v1/events, which goes on until who asked hangs up. Which fields an event has stands with its kind.
type Event struct {
	Schema    int       `json:"schema"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"` // one of the constants above
	State     State     `json:"state,omitempty"`
	Endpoint  string    `json:"endpoint,omitempty"`
	Kind      string    `json:"kind,omitempty"` // of a path
	Relay     string    `json:"relay,omitempty"`
	Remote    string    `json:"remote,omitempty"`
	Direction string    `json:"direction,omitempty"`
	Address   string    `json:"address,omitempty"`
	Hops      []string  `json:"hops,omitempty"`
	Method    string    `json:"method,omitempty"`
	InEffect  *bool     `json:"in_effect,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Lost      uint64    `json:"lost,omitempty"`
}

// Failure is the body of every answer that is not 200.
type Failure struct {
	Schema int    `json:"schema"`
	Error  string `json:"error"`
	Code   string `json:"code"` // one of the Code constants
}

// Codes of failures. The command line maps them to its exit codes.
const (
	CodeFailure  = "failure"
	CodeUsage    = "usage"
	CodeNotReady = "not_ready"
	CodeDenied   = "denied"
	CodeNotFound = "not_found" // no such name, no contact, no path
)
