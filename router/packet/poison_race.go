//go:build race

package packet

// poison overwrites released buffers, so that a use after Release shows; only in race builds.
const poison = true
