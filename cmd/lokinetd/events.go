package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/router/control"
)

func (a *app) eventsCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "events", Short: "Tell what happens, one line each, until Ctrl-C", Args: cobra.NoArgs,
		Long: "Tell what happens, one line each, until Ctrl-C: whether the daemon is ready, edges (relays connected to), paths\n" +
			"and sessions that come and go, sessions that take another path, services that can be found by others or not any\n" +
			"more, and whether programs of this machine ask the name server. The first line says how the daemon is now.\n\n" +
			"What comes and goes again within a quarter of a second may not be told. Who reads too slowly loses events and\n" +
			"is told how many. Exit code 3: the daemon has ended.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			marks := localMarks()
			return c.Events(cmd.Context(), func(e control.Event) error {
				if a.json {
					return json.NewEncoder(a.out).Encode(e)
				}
				_, err := fmt.Fprintln(a.out, printable(eventText(e, marks)))
				return err
			})
		},
	})
}

// eventText is an event in one line.
func eventText(e control.Event, k marks) string {
	what := strings.ReplaceAll(e.Event, "_", " ")
	var text string
	switch e.Event {
	case control.EventState:
		what, text = string(e.State), e.Reason
	case control.EventEdgeUp, control.EventEdgeDown:
		text = fmt.Sprintf("%s at %s", short(e.Relay), e.Address)
	case control.EventPathUp, control.EventPathDown:
		way := e.Kind
		if way != "inbound" {
			way = "to a " + way
		}
		text = fmt.Sprintf("you%s%s  %s of %s", k.hop, hopsText(e.Hops, k.hop), way, e.Endpoint)
	case control.EventSessionUp, control.EventSessionDown, control.EventSwitched:
		way := "to"
		if e.Direction == "in" {
			way = "from"
		}
		text = fmt.Sprintf("%s %s %s", e.Endpoint, way, e.Remote)
		if len(e.Hops) > 0 && e.Event != control.EventSessionDown {
			text += ", by you" + k.hop + hopsText(e.Hops, k.hop)
		}
	case control.EventResolver:
		text = "programs of this machine ask lokinetd, by " + e.Method
		if e.InEffect == nil || !*e.InEffect {
			text = "programs of this machine are not led to lokinetd"
		}
	case control.EventLost:
		text = fmt.Sprintf("%d events, which came faster than they were read", e.Lost)
	default:
		text = strings.TrimSpace(e.Endpoint + " " + e.Address)
	}
	if e.Reason != "" && e.Event != control.EventState {
		text += ": " + e.Reason
	}
	return strings.TrimRight(fmt.Sprintf("%s  %-16s %s", e.Time.Format(time.DateTime+".000"), what, text), " ")
}
