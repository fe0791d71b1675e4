package path

import "lokinetd/router/bt"

// Texts of error replies to path_build and path_control (protocol 3 section 2.7). The client only logs them.
const (
	textOK           = "OK"
	textError        = "ERROR"
	textBadFrames    = "BAD FRAMES"
	textInvalidData  = "INVALID DATA"
	textBadDH        = "INVALID DH PUBKEY"
	textBadPayload   = "INVALID TRANSIT HOP PAYLOAD"
	textBadIDs       = "INVALID TRANSIT HOP IDS"
	textIDInUse      = "TRANSIT HOP ID ALREADY IN USE"
	textBadLifetime  = "INVALID PATH LIFETIME"
	maxStatusShown   = 80 // bytes of a remote's text that go into an error
	statusKey        = "!"
	replyUnparseable = "unreadable status"
)

// status encodes a text as the body of a reply: d1:!<n>:<text>e.
func status(text string) []byte { return bt.NewDict(nil).String(statusKey, text).End() }

// statusText reads the text of a status body, for logs: printable ASCII, cut to a sane length.
func statusText(body []byte) string {
	d := bt.ReadDict(body)
	b := d.Bytes(statusKey)
	if d.Finish() != nil {
		return replyUnparseable
	}
	b = b[:min(len(b), maxStatusShown)]
	for _, c := range b {
		if c < ' ' || c > '~' {
			return replyUnparseable
		}
	}
	return string(b)
}
