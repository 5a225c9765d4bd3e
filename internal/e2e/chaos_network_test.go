package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/tiergate/tiergate/internal/devstack"
)

// newNetworkTrial starts two instances that reach Redis through a proxy which can spoil
// the connections.
func newNetworkTrial(t *testing.T) (*trial, *toxiproxy.Proxy) {
	t.Helper()
	server, err := devstack.StartRedisServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	stopAfterwards(t, server.Stop)
	proxy := before(t, server.Address)
	return newTrial(t, devstack.Options{RedisRunning: true, RedisAddress: proxy.Listen}, 2), proxy
}

// before starts a proxy that can spoil the connections to an address.
func before(t *testing.T, address string) *toxiproxy.Proxy {
	t.Helper()
	listen, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), address, listen, address)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	return proxy
}

// spoil is a trial in which the connections have a toxic for a while, in each of these
// directions.
func (f *trial) spoil(name string, proxy *toxiproxy.Proxy, toxic, attributes string, directions ...string) row {
	f.t.Helper()
	return f.run(name, pick(10*time.Second, 3*time.Second), func() {
		for _, d := range directions {
			text := fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, d, toxic, d, attributes)
			if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
				f.t.Fatal(err)
			}
		}
	}, func() {
		for _, d := range directions {
			if err := proxy.Toxics.RemoveToxic(context.Background(), d); err != nil {
				f.t.Fatal(err)
			}
		}
	})
}

// slowNetwork: answers of Redis come late. Within the time-out of a call they are waited
// for; beyond it the instances go on alone, and what Redis did meanwhile counts.
func slowNetwork(t *testing.T, by time.Duration) row {
	f, proxy := newNetworkTrial(t)
	r := f.spoil(fmt.Sprintf("Redis answers %s late", by), proxy, "latency", fmt.Sprintf(`{"latency": %d}`, by.Milliseconds()), "downstream")
	const outages = 5 // Redis may come and go
	return f.check(r, promise{
		slowest: slowest(), over: outages * f.stale(), doubt: outages * f.inDoubt(), lost: outages * f.inDoubt(), tokens: outages * f.unsettled(),
	})
}

// blackHole: packets vanish in both directions, connections stay.
func blackHole(t *testing.T) row {
	f, proxy := newNetworkTrial(t)
	r := f.spoil("Black hole before Redis", proxy, "timeout", `{"timeout": 0}`, "downstream", "upstream")
	return f.check(r, promise{slowest: slowest(), alone: true, over: f.stale(), doubt: f.inDoubt(), lost: f.inDoubt(), tokens: f.unsettled()})
}

// connectionResets: each connection is reset as soon as Redis answers on it.
func connectionResets(t *testing.T) row {
	f, proxy := newNetworkTrial(t)
	r := f.spoil("Connections to Redis reset", proxy, "reset_peer", `{"timeout": 0}`, "downstream")
	return f.check(r, promise{slowest: slowest(), alone: true, over: f.stale(), doubt: f.inDoubt(), lost: f.inDoubt(), tokens: f.unsettled()})
}
