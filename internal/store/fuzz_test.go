package store

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// FuzzAnswers looks for an answer of the script that panics, or is taken for one it is not.
func FuzzAnswers(f *testing.F) {
	f.Add("n1n", int64(1772366430000), "secret", 1)
	f.Add("n1nn0", int64(-1), "", 2)
	f.Add("n2nsn1", int64(7), "1", 1)
	f.Add("nss", int64(7), "WRONGTYPE", 1)
	f.Add("n2nxn1", int64(7), "1", 1)
	f.Add("", int64(0), "", 0)
	f.Fuzz(func(t *testing.T, shape string, number int64, text string, charges int) {
		if charges < 0 || charges > 100 {
			return
		}
		var values []any
		for _, c := range shape {
			switch c {
			case 'n':
				values = append(values, number)
			case '0', '1', '2':
				values = append(values, int64(c-'0'))
			case 's':
				values = append(values, text)
			default:
				values = append(values, nil)
			}
		}
		order, settlement := &operation{order: &quota.Order{Charges: make([]quota.Charge, charges)}}, &operation{settlement: &quota.Settlement{}}
		reply := redis.NewCmd(t.Context())
		reply.SetVal(values)
		answer([]*operation{order, settlement}, reply)
		if order.err == nil && len(order.taken.Used) != charges {
			t.Errorf("%v for %d charges: %+v", values, charges, order.taken)
		}
		if settlement.err == nil && settlement.outcome > quota.Duplicate {
			t.Errorf("%v is %+v", values, settlement.outcome)
		}
		if least := 3; len(values) < least && (order.err == nil || settlement.err == nil) {
			t.Errorf("%v is taken for two answers", values)
		}
	})
}

// FuzzUsageText looks for the text of a field that panics, or becomes another one each
// time it is written.
func FuzzUsageText(f *testing.F) {
	f.Add("0 chat", "1 2 3 4 5 requests_per_minute 6 other 7", int64(3))
	f.Add("7", "1 2 3 4", int64(0))
	f.Add("29 a b", "9223372036854775807 -1 0 0 0 x", int64(1)<<62)
	f.Add("-1", "1 2 3 4 5 6", int64(-5))
	f.Fuzz(func(t *testing.T, name, text string, number int64) {
		if s, err := parseSum(text); err == nil {
			again, err := parseSum(s.String())
			if err != nil || again.String() != s.String() {
				t.Errorf("%q is %q, and that is %q, %v", text, s, again, err)
			}
			again.Add(s.Counts)
		}
		if v, err := parseTotal(text); err == nil {
			if again, err := parseTotal(v.String()); err != nil || again != v {
				t.Errorf("%q is %v, and that is %v, %v", text, v, again, err)
			}
		}
		_, _ = largest(text, number)
		now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		for _, b := range pointBlocks() {
			q := usage.Query{Step: usage.Day, From: now.Add(-time.Hour), To: now.Add(time.Hour)}
			s := newSeries(q)
			_ = s.add(b, b.number(now)+number%2, name, text)
			for _, p := range s.sorted() {
				if p.Start.Before(q.From) || !p.Start.Before(q.To) {
					t.Errorf("%q: a point at %s: want one from %s to %s", name, p.Start, q.From, q.To)
				}
			}
		}
	})
}

// FuzzRefusals looks for a list of refusals that panics, grows without bounds, or is out
// of order.
func FuzzRefusals(f *testing.F) {
	f.Add(`[{"at":"2026-03-01T11:59:00Z","resource":"chat","limit":"requests_per_minute","used":10,"max":10,"asked":1,"wait":1}]`)
	f.Add(`[` + strings.Repeat(`{"at":"2026-03-01T11:00:00Z"},`, 60) + `{"at":"9999-01-01T00:00:00Z"}]`)
	f.Add(`null`)
	f.Add(`{}`)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		written, err := withRefusal(text, usage.Refusal{At: now}, now)
		if err != nil {
			return
		}
		var list []usage.Refusal
		if err := json.Unmarshal([]byte(written), &list); err != nil || len(list) == 0 || len(list) > mostRefusals {
			t.Fatalf("%q becomes %q, %v", text, written, err)
		}
		for i := 1; i < len(list); i++ {
			if list[i].At.After(list[i-1].At) {
				t.Errorf("%q is out of order", written)
			}
		}
		if _, err := decodeAll[usage.Refusal]([]string{text}); err == nil && strings.HasPrefix(strings.TrimSpace(text), "[") {
			t.Errorf("a list is taken for a refusal: %q", text)
		}
	})
}

// FuzzKeyRecord looks for a record, or an entry of the audit log, that panics, is taken
// for another key's, or cannot be written back.
func FuzzKeyRecord(f *testing.F) {
	hash := "sha256:" + strings.Repeat("0a", 32)
	f.Add("a", `{"id":"a","hash":"`+hash+`","tier":"free","owner":"free","resources":["free"]}`)
	f.Add("a", `{"id":"b","hash":"`+hash+`"}`)
	f.Add("a", `{"id":"a","id":"b","hash":"`+hash+`"}`)
	f.Add("00000000000000000007", `{"id":"x","at":"2026-03-01T12:00:00Z","by":"ada","action":"create","key_id":"a"}`)
	f.Add("1-1", `[]`)
	f.Fuzz(func(t *testing.T, id, text string) {
		if r, fault := newKeyReader().read(id, []byte(text)); fault == nil {
			if r.ID != id {
				t.Errorf("%q is read as %q", id, r.ID)
			}
			_, _, err := keyChanges([]apikey.Change{{Record: r}})
			if refused := !apikey.ValidID(id) || r.Revision < 0; (err != nil) != refused {
				t.Errorf("%q written back: %v", text, err)
			}
		} else if fault.ID != id || fault.Err == nil {
			t.Errorf("%+v", fault)
		}
		if e, err := readEvent(id, []byte(text)); err == nil && e.ID != id {
			t.Errorf("%q is read as %q", id, e.ID)
		}
		if n, err := eventNumber(id); err == nil && id != "" && strings.TrimLeft(id, "0") != "" && n == 0 {
			t.Errorf("%q is event 0", id)
		}
	})
}

// FuzzKeyAnswer looks for an answer of the script that writes keys that panics, or names a
// key that was not written.
func FuzzKeyAnswer(f *testing.F) {
	f.Add("taken", int64(0), true)
	f.Add("conflict", int64(1), true)
	f.Add("lost", int64(-1), false)
	f.Add("", int64(1)<<62, true)
	f.Fuzz(func(t *testing.T, code string, n int64, number bool) {
		reply := []any{code, n}
		if !number {
			reply = []any{n, code}
		}
		err := refusal(reply, []keyChange{{id: "a"}})
		if err == nil {
			t.Errorf("%v is no refusal", reply)
		}
		if fault, ok := errors.AsType[*apikey.KeyError](err); ok && fault.ID != "a" {
			t.Errorf("%v is about %q", reply, fault.ID)
		}
	})
}
