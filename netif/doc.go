// Package netif is the host's side of the tunnel: the TUN device with its addresses and routes, the map between remotes and local
// addresses, the flow table that keeps inbound closed, and the pump that moves packets between the TUN and the endpoints' tunnels.
//
// Where there may be no network interface, a [Stack] stands in the place of TUN, kernel and programs: TCP and UDP in this process, to dial and to listen.
//
// It does not know sessions, paths or names. Upwards there is one small interface, [Tunnel], that a session table fits; downwards one, [TUN],
// that [Device], [Stack] and, for tests, [MemTUN] fit. Which endpoints exist, which ranges they get and what is kept in the state file is
// router's business; the host's resolver is dns's.
//
// What it puts on the host: one TUN interface, one address per endpoint and family, and one unreachable route behind every range, and one
// nftables table. Nothing else is touched.
package netif
