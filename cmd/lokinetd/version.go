package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"lokinetd/router"
)

// version is set by the linker to what git describes.
var version = "unknown"

func (a *app) versionCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p := router.ProtocolVersion
			if a.json {
				return a.printJSON(map[string]any{"schema": 1, "version": version, "go": runtime.Version(),
					"protocol": fmt.Sprintf("%d.%d.%d", p[0], p[1], p[2])})
			}
			fmt.Fprintf(a.out, "lokinetd %s (Session Router protocol %d.%d.%d, %s %s/%s)\n", version, p[0], p[1], p[2],
				runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	})
}
