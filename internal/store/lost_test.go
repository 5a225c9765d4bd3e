package store

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A lossyProxy stands before Redis. Told to, it delivers one request and
// closes the connection instead of delivering the answer.
type lossyProxy struct {
	address string
	losing  atomic.Bool // the next answer
}

func newLossyProxy(t *testing.T, target string) *lossyProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &lossyProxy{address: l.Addr().String()}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				near.Close()
				return
			}
			go func() { _, _ = io.Copy(far, near); far.Close() }()
			go p.answers(near, far)
		}
	}()
	return p
}

func (p *lossyProxy) answers(near, far net.Conn) {
	defer near.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := far.Read(buffer)
		if err != nil || p.losing.CompareAndSwap(true, false) {
			return
		}
		if _, err := near.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// TestNoSecondCharge: an answer that is lost leaves the outcome unknown, so the
// script is not sent again.
func TestNoSecondCharge(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	direct := redisStore(t, server)
	take(t, direct, of("a", charge(quota.Month, 1000, 1)))
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	lossy := NewRedis(RedisOptions{Address: proxy.address, KeyPrefix: "test", Timeout: 5 * time.Second, PoolSize: 1})
	defer lossy.Close()
	wantTaken(t, take(t, lossy, of("a", charge(quota.Month, 1000, 1))), true, 2)
	proxy.losing.Store(true)
	if _, err := lossy.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Month, 1000, 1)}}); err == nil {
		t.Error("the lost answer arrived")
	}
	wantTaken(t, take(t, direct, of("a", charge(quota.Month, 1000, 1))), true, 4)
}
