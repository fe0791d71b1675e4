package router

import (
	"maps"
	"testing"

	"lokinetd/netif"
	"lokinetd/router/link"
)

// TestDropNames: the reasons of each part have their names in status; what was carried has none.
func TestDropNames(t *testing.T) {
	d := dropped{}
	d.add("tun_out", netif.Stats{OutFull: 1, OutStanding: 2, InQueueFull: 3, ReadFailed: 4}, "Out")
	d.add("link", link.ConnStats{DropFull: 5, DropStanding: 6, DatagramsIn: 7}, "Drop")
	if want := (dropped{"tun_out_full": 1, "tun_out_standing": 2, "link_full": 5, "link_standing": 6}); !maps.Equal(d, want) {
		t.Errorf("%v, want %v", d, want)
	}
}
