package router

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/path"
)

// keptEdges are a client's edge candidates of each network, by its id (edgesFile).
type keptEdges map[string]keptList

type keptList struct {
	Candidates []keptEdge `json:"candidates"` // in the order of preference
	Grown      time.Time  `json:"grown"`
}

// keptEdge is a path.Candidate.
type keptEdge struct {
	Relay key.Public `json:"relay"`
	Until time.Time  `json:"until,omitzero"`
}

const maxKeptEdges = 1000 // of a network; more are none of our writing

// openEdges gives the edge candidates of the last run in that network, and what keeps those of this one. A full disk costs only that they are not kept.
func (h *host) openEdges(network uint64) (path.EdgeList, func(path.EdgeList)) {
	id := strconv.FormatUint(network, 10)
	all, _ := restore[keptEdges](h, edgesFile, "other relays are chosen to connect to")
	kept, list := all[id], path.EdgeList{}
	if len(kept.Candidates) <= maxKeptEdges {
		list.Grown = kept.Grown
		for _, e := range kept.Candidates {
			list.Candidates = append(list.Candidates, path.Candidate(e))
		}
	}
	warned := false
	return list, func(l path.EdgeList) {
		next := maps.Clone(all)
		if len(next) >= maxSerials || next == nil {
			next = keptEdges{} // a network a day, for months
		}
		now := keptList{Candidates: []keptEdge{}, Grown: l.Grown}
		for _, c := range l.Candidates {
			now.Candidates = append(now.Candidates, keptEdge(c))
		}
		if slices.Equal(now.Candidates, all[id].Candidates) && now.Grown.Equal(all[id].Grown) {
			return
		}
		next[id] = now
		err := h.dir.save(edgesFile, next)
		if err == nil {
			all = next
		} else if !warned {
			h.log.Warn("which relays to connect to cannot be kept for the next start", "err", err)
		}
		warned = err != nil
	}
}
