package oxend

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

func public(n byte) key.Public { return key.Public{0: n, 31: 1} }

func hexOf(id key.Public) string { return fmt.Sprintf("%x", id[:]) }

// TestRequests: what we ask, as protocol 2 section 8.1 gives it.
func TestRequests(t *testing.T) {
	id := public(0xab)
	for _, x := range []struct{ got, want string }{
		{string(encodeListRequest("")), `{"fields":["pubkey_ed25519","block_hash","service_node_version"]}`},
		{string(encodeListRequest("abcd")), `{"fields":["pubkey_ed25519","block_hash","service_node_version"],"poll_block_hash":"abcd"}`},
		{string(encodePing(id, [3]uint8{1, 0, 2})), `{"pubkey_ed25519":"` + hexOf(id) + `","version":[1,0,2]}`},
		{string(encodeReport(id, true)), `{"passed":true,"pubkey":"` + hexOf(id) + `","type":"srouter"}`},
	} {
		if x.got != x.want {
			t.Errorf("%s, want %s", x.got, x.want)
		}
	}
}

func TestParseList(t *testing.T) {
	state := func(n byte, rest string) string {
		return fmt.Sprintf(`{"pubkey_ed25519": %q%s}`, hexOf(public(n)), rest)
	}
	const good = `, "service_node_version": [11, 6, 0]`
	for _, x := range []struct {
		name, states string
		want         []byte
	}{
		{"none", ``, nil},
		{"two, with more in them", state(2, good+`, "active": false`) + "," + state(1, `, "service_node_version": [12, 0, 0]`), []byte{1, 2}},
		{"the same twice", state(1, good) + "," + state(1, good), []byte{1}},
		{"upper case", fmt.Sprintf(`{"pubkey_ed25519": %q%s}`, strings.ToUpper(hexOf(public(0xab))), good), []byte{0xab}},
		{"old", state(1, `, "service_node_version": [11, 5, 9]`) + "," + state(2, good), []byte{2}},
		{"no version", state(1, ``) + "," + state(2, good), []byte{2}},
		{"null version", state(1, `, "service_node_version": null`) + "," + state(2, good), []byte{2}},
		{"versions of other forms", state(1, `, "service_node_version": "11.6.0"`) + "," + state(2, `, "service_node_version": [11, 6]`) + "," + state(3, `, "service_node_version": [11,6,0,0]`), nil},
		{"no key, null, a number, not hex, too short, no object",
			`{"service_node_version": [11,6,0]}, {"pubkey_ed25519": null` + good + `}, {"pubkey_ed25519": 5` + good + `}, {"pubkey_ed25519": "` + strings.Repeat("x", 64) + `"` + good + `}, {"pubkey_ed25519": "ab"` + good + `}, 7,` + state(9, good),
			[]byte{9}},
	} {
		a, err := parseList([]byte(`{"status": "OK", "block_hash": "h", "more": [], "service_node_states": [` + x.states + `]}`))
		var want []key.Public
		for _, n := range x.want {
			want = append(want, public(n))
		}
		if err != nil || a.block != "h" || a.unchanged || !slices.Equal(a.ids, want) {
			t.Errorf("%s: %v, %v, want %v", x.name, a, err, want)
		}
	}
	for _, x := range []struct {
		text string
		ok   bool
	}{
		{`{"status": "OK", "unchanged": true}`, true},
		{`{"status": "OK", "unchanged": false}`, false},
		{`{"status": "OK", "unchanged": 1}`, false},
		{`{"status": "Failed", "unchanged": true}`, false},
		{`{"unchanged": true}`, false},
		{`{"status": "OK", "service_node_states": null}`, false},
		{`{"status": "OK", "service_node_states": [0` + strings.Repeat(`,0`, maxStates) + `]}`, false},
		{`{"status": "OK", "service_node_states": {}}`, false},
		{`[]`, false}, {``, false}, {`null`, false}, {`{"status"`, false},
	} {
		if a, err := parseList([]byte(x.text)); (err == nil) != x.ok || a.unchanged != x.ok {
			t.Errorf("%s: %v, %v", x.text, a, err)
		}
	}
	a, err := parseList([]byte(`{"status": "OK", "block_hash": "` + strings.Repeat("a", maxPollHash+1) + `", "service_node_states": []}`))
	if err != nil || a.block != "" {
		t.Errorf("a long hash is kept: %v, %v", a, err)
	}
}

func TestParseKey(t *testing.T) {
	s := key.FromSeed([32]byte(testkit.Counting(0x51, 32)))
	seed, pub := s.Seed(), s.Public()
	text := fmt.Sprintf("%x%x", seed, pub[:])
	got, err := parseKey([]byte(`{"service_node_privkey": "00", "service_node_ed25519_privkey": "` + text + `", "status": "OK"}`))
	if err != nil || got.Public() != s.Public() {
		t.Fatal(got, err)
	}
	other := strings.Replace(text, text[64:66], fmt.Sprintf("%02x", pub[0]^1), 1)
	for _, bad := range []string{``, `{}`, `{"service_node_ed25519_privkey": ""}`, `{"service_node_ed25519_privkey": 5}`, `{"service_node_ed25519_privkey": "` + text[:64] + `"}`,
		`{"service_node_ed25519_privkey": "` + strings.Repeat("x", 128) + `"}`, `{"service_node_ed25519_privkey": "` + other + `"}`, `"` + text + `"`} {
		got, err := parseKey([]byte(bad))
		if err == nil {
			t.Errorf("%s: %v", bad, got)
			continue
		}
		testkit.Hidden(t, err, [][]byte{seed[:]})
	}
}

func TestParseName(t *testing.T) {
	nonce := [24]byte{5}
	good := bt.NewDict(nil).Bytes("encrypted_value", bytes.Repeat([]byte{7}, 48)).Bytes("nonce", nonce[:]).End()
	parts := func(p ...string) (all [][]byte) {
		for _, s := range p {
			all = append(all, []byte(s))
		}
		return all
	}
	sealed, n, err := parseName(parts("200", string(good)))
	if err != nil || len(sealed) != 48 || n != nonce {
		t.Fatal(sealed, n, err)
	}
	bad := [][][]byte{nil, parts("200"), parts("200", "de"), parts("404", string(good)), parts("200", string(good), ""), parts("200", string(good)+"e"),
		parts("200", string(bt.NewDict(nil).Bytes("encrypted_value", make([]byte, maxValue+1)).Bytes("nonce", nonce[:]).End())),
		parts("200", string(bt.NewDict(nil).Bytes("encrypted_value", nil).Bytes("nonce", nonce[:23]).End()))}
	for i := range good {
		bad = append(bad, parts("200", string(good[:i])))
	}
	for _, p := range bad {
		if _, _, err := parseName(p); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// FuzzAnswers: whatever oxend answers, the relay goes on; a list has each relay once.
//
// Decoders: parseList hexKey.UnmarshalText parseName parseKey pingStatus
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"status": "OK", "block_hash": "h", "service_node_states": [{"pubkey_ed25519": "` + strings.Repeat("0a", 32) + `", "service_node_version": [11,6,0]}]}`))
	f.Add([]byte(`d15:encrypted_value0:5:nonce24:aaaaaaaaaaaaaaaaaaaaaaaae`))
	secret := key.FromSeed([32]byte{1}).Bytes64()
	for _, s := range []string{
		`{"status": "OK", "unchanged": true}`, `{"status": "failed"}`, `{"status": "OK"}`, `{"status": "OK", "block_hash": 5, "service_node_states": [{"pubkey_ed25519": "0a", "service_node_version": [11,6,0]}, 5, {}]}`,
		`{"service_node_ed25519_privkey": "` + hex.EncodeToString(secret[:]) + `"}`, `{"service_node_ed25519_privkey": "` + strings.Repeat("x", 128) + `"}`, `{"service_node_ed25519_privkey": ""}`,
	} {
		f.Add([]byte(s))
	}
	if _, err := parseList([]byte(`{"status": "OK", "service_node_states": [` + strings.Repeat("0,", maxStates) + `0]}`)); err == nil {
		f.Fatal("too many")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseList(b); err == nil {
			for i := range max(len(a.ids)-1, 0) {
				if a.ids[i].Compare(a.ids[i+1]) >= 0 {
					t.Fatal("not ascending:", a.ids)
				}
			}
		}
		if sealed, _, err := parseName([][]byte{[]byte("200"), b}); err == nil && len(sealed) > maxValue {
			t.Fatalf("%d bytes", len(sealed))
		}
		if _, _, err := parseName([][]byte{b, b}); err == nil {
			t.Fatal("a refusal is an answer")
		}
		parseKey(b)
		pingStatus(b)
	})
}

func TestSchedule(t *testing.T) {
	rng := testkit.Rand(t).Rand
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	self := public(50)
	var all []key.Public
	for n := range byte(100) {
		all = append(all, public(n))
	}
	slices.SortFunc(all, key.Public.Compare)
	s := NewSchedule(self, rng)

	// A round of all passes: everybody once, in no order, one in each interval.
	var order []key.Public
	for range 99 {
		got := s.Next(now, all)
		if len(got) != 1 || got[0] == self {
			t.Fatal(got)
		}
		order = append(order, got[0])
		s.Passed(got[0])
	}
	if slices.IsSortedFunc(order, key.Public.Compare) {
		t.Error("in order")
	}
	slices.SortFunc(order, key.Public.Compare)
	if len(slices.Compact(order)) != 99 {
		t.Error("not everybody once")
	}

	// One fails for ten times: it is tested again and again beside the others, ever later.
	got := s.Next(now, all)
	bad := got[0]
	last := now
	for n := 1; n <= 20; n++ {
		s.Failed(bad, now)
		for again := false; !again; {
			now = now.Add(TestInterval)
			got := s.Next(now, all)
			if len(got) > 2 {
				t.Fatal(got)
			}
			for i, id := range got {
				if id != bad {
					s.Passed(id)
				} else if again = true; i != 0 {
					t.Error("drawn from the queue while it fails")
				}
			}
		}
		want := min(time.Duration(n)*10*time.Second, 2*time.Minute)
		if d := now.Sub(last) - want; d > 18*time.Second || d < -18*time.Second || now.Sub(last) > 2*time.Minute+TestInterval {
			t.Errorf("after failure %d: %v, want about %v", n, now.Sub(last), want)
		}
		last = now
	}
	s.Passed(bad)
	if len(s.failing) != 0 || len(s.testing) != 0 {
		t.Error("something is left:", s.failing, s.testing)
	}

	// Ten fail: three of them at a time, those that wait longest first; who is registered no more is forgotten.
	for n := range 10 {
		s.testing[all[n]] = true
		s.Failed(all[n], now.Add(time.Duration(n)*time.Hour))
	}
	now = now.Add(24 * time.Hour)
	if got := s.Next(now, all); len(got) != 4 || !slices.Equal(got[:3], all[:3]) {
		t.Error(got)
	}
	if got := s.Next(now, all[4:]); len(got) != 4 || !slices.Equal(got[:3], all[4:7]) || s.failing[all[3]].inRow != 0 {
		t.Error(got)
	}
	// Nobody else, nobody, and nobody but those under test.
	s = NewSchedule(self, rng)
	if got := s.Next(now, []key.Public{self}); len(got) != 0 {
		t.Error(got)
	}
	if got := s.Next(now, nil); len(got) != 0 {
		t.Error(got)
	}
	for range 3 {
		s.Next(now, all[:2])
	}
	if len(s.testing) != 2 {
		t.Error(s.testing)
	}
	s.Forget(all[0])
	if got := s.Next(now, all[:2]); !slices.Equal(got, all[:1]) {
		t.Error(got)
	}
	for range 1000 {
		s.Next(now, all)
	}
	if len(s.testing) > maxTesting {
		t.Error(len(s.testing), "tests at a time")
	}
}
