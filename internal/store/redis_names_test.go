package store

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer makes this process ask a name server for the rest of the test, which says
// nothing, and of every name that it is at 127.0.0.1 from when answers is set.
func nameServer(t *testing.T) (answers *atomic.Bool) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	former := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = former
		conn.Close()
	})
	answers = new(atomic.Bool)
	go func() {
		for buffer := make([]byte, 4096); ; {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := isHere(buffer[:n]); answers.Load() && answer != nil {
				_, _ = conn.WriteTo(answer, from) // who asked may have gone
			}
		}
	}()
	return answers
}

// isHere returns the answer that a name is at 127.0.0.1; nil to what is no question.
func isHere(question []byte) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(question)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: header.ID, Response: true, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// TestNameIsLookedUpAgain has name servers that were silent for a while: whoever connects
// afterwards does not wait for what others asked before.
func TestNameIsLookedUpAgain(t *testing.T) {
	answers := nameServer(t)
	_, port, err := net.SplitHostPort(startRedis(t).Address)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("redis.test.", port)
	var stores [2]*Redis
	for i := range stores {
		stores[i] = openRedis(t, at(address))
	}
	var group sync.WaitGroup
	for _, r := range stores {
		group.Go(func() {
			if _, err := r.Take(t.Context(), one("a")); err == nil {
				t.Error("counted by a Redis whose address nobody knows")
			}
		})
	}
	group.Wait()
	answers.Store(true)
	if _, err := stores[0].Take(t.Context(), one("a")); err != nil {
		t.Errorf("the name is known again: %v", err)
	}
}
