package devstack

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

var errNotYet = errors.New("not yet")

// TestRedisCluster starts a Cluster, fails over and moves a slot.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	c, err := StartRedisCluster(t.Context(), ClusterOptions{Dir: t.TempDir(), Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	owner, err := c.Owner(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Do(t.Context(), "SET", "k", "1"); err != nil {
		t.Fatal(err)
	}
	other := c.Servers[0]
	if other == owner {
		other = c.Servers[1]
	}
	steps := 0
	if err := c.MoveSlot(t.Context(), "k", other, func() { steps++ }); err != nil || steps != 2 {
		t.Fatalf("moved in %d steps: %v", steps, err)
	}
	if now, err := c.Owner(t.Context(), "k"); err != nil || now != other {
		t.Errorf("the slot was not moved: %v", err)
	}
	if err := other.Kill(); err != nil {
		t.Fatal(err)
	}
	var now *RedisServer
	err = poll(t.Context(), func(ctx context.Context) error {
		if now, err = c.Owner(ctx, "k"); err == nil && now != other {
			return nil
		}
		return errNotYet
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := now.Do(t.Context(), "GET", "k"); err != nil || got != "1" {
		t.Errorf("after the fail-over k is %q: %v", got, err)
	}
}

// TestSentinels starts a set and fails over.
func TestSentinels(t *testing.T) {
	t.Parallel()
	s, err := StartSentinels(t.Context(), SentinelOptions{Dir: t.TempDir(), Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	primary, err := s.Primary(t.Context())
	if err != nil || primary != s.Servers[0] {
		t.Fatalf("the primary is %v: %v", primary, err)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	err = poll(t.Context(), func(ctx context.Context) error {
		if now, err := s.Primary(ctx); err != nil || now != s.Servers[1] {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := s.Servers[1].Do(t.Context(), "ROLE"); err != nil || !strings.HasPrefix(info, "master") {
		t.Errorf("role %q: %v", info, err)
	}
	lost := func(e Event) bool { return strings.HasPrefix(e.Text, "+sdown master "+SentinelMaster) }
	switched := func(e Event) bool { return strings.HasPrefix(e.Text, "+switch-master "+SentinelMaster) }
	// Sentinels name the new primary from its promotion on, and switch to it a moment later.
	var events []Event
	err = poll(t.Context(), func(context.Context) error {
		all, err := s.Events()
		if events = all; err == nil && !slices.ContainsFunc(all, switched) {
			return errNotYet
		}
		return err
	})
	if err != nil {
		t.Fatalf("no event tells of the new primary: %v\n%v", err, events)
	}
	promoted := slices.DeleteFunc(slices.Clone(events), func(e Event) bool { return !e.Promoted() })
	if len(promoted) != 1 || promoted[0].Address != s.Servers[1].Address {
		t.Errorf("promoted: %v, want %s once", promoted, s.Servers[1].Address)
	}
	if first := slices.IndexFunc(events, lost); first < 0 || first > slices.IndexFunc(events, switched) {
		t.Errorf("events do not tell of the loss and the new primary, in this order:\n%v", events)
	}
}
