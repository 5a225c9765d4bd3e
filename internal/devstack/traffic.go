package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// The bounds of traffic.
const (
	maxRate     = 1000 // requests per second
	maxDuration = time.Hour
	inFlight    = 20               // requests that are under way at most
	patience    = 30 * time.Second // with one answer
	reportEvery = 5 * time.Second
)

// Traffic is what a few customers with the demo keys of config/keys.yaml, and two
// callers without a key that works, ask of the mock AI API. It is made for the
// limits of config/tiergate.yaml: within a minute requests pass and are refused
// for each reason.
type Traffic struct {
	Address  string        // where Envoy listens: a loopback address with its port
	Rate     float64       // requests per second, on average: they come in waves; at most 1000
	Duration time.Duration // of sending; at most an hour
	Requests int           // that are sent at most; 0: any number
	Seed     uint64        // of chance: with the same one the same requests are sent in the same order
	Out      io.Writer     // for a line every few seconds and a table at the end
}

// Send sends the traffic until the duration is over, all requests are sent or ctx
// is done, of which none is an error. It waits for the answers that are under way,
// except when ctx is done. A request without an answer ends it with an error.
func (t Traffic) Send(ctx context.Context) error {
	if err := t.Check(); err != nil {
		return err
	}
	group, answering := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	sending, stop := context.WithTimeout(answering, t.Duration)
	defer stop()
	began := time.Now()
	c := &caller{base: "http://" + t.Address, client: ownClient(), tally: newTally(began)}
	defer c.client.CloseIdleConnections()
	crowd := newCrowd(rand.New(rand.NewPCG(t.Seed, 0)))
	pace := rate.NewLimiter(rate.Limit(t.Rate), 1)
	reported := began
	for n := 0; n < t.Requests || t.Requests == 0; n++ {
		now := time.Now()
		pace.SetLimitAt(now, rate.Limit(t.Rate*wave(now.Sub(began))))
		if pace.Wait(sending) != nil { // the end has come, or will before the next
			break
		}
		s := crowd.next()
		group.Go(func() error { return c.call(answering, s) })
		if now.Sub(reported) >= reportEvery {
			reported = reported.Add(reportEvery)
			fmt.Fprintln(t.Out, c.tally.line(now))
		}
	}
	err := group.Wait()
	c.tally.summarize(t.Out, time.Now())
	return err
}

// Check returns an error where the traffic is out of bounds, before anything is sent.
// Send refuses the same.
func (t Traffic) Check() error {
	address, err := netip.ParseAddrPort(t.Address)
	if err != nil || !address.Addr().IsLoopback() || address.Port() == 0 {
		return fmt.Errorf("send traffic to %q: want an address of this machine alone, such as 127.0.0.1:10000", t.Address)
	}
	if !(t.Rate > 0 && t.Rate <= maxRate) { // so that NaN is refused too
		return fmt.Errorf("send %v requests per second: want more than 0 and at most %d", t.Rate, maxRate)
	}
	if t.Duration <= 0 || t.Duration > maxDuration {
		return fmt.Errorf("send traffic for %s: want more than 0s and at most %s", t.Duration, maxDuration)
	}
	if t.Requests < 0 {
		return fmt.Errorf("send %d requests: want 1 or more, or 0 for any number", t.Requests)
	}
	return nil
}

// wave returns the rate at this time after the beginning, 1 being the average. A
// short wave is for what is shown live, a long one for charts by the minute.
func wave(after time.Duration) float64 {
	turns := func(period time.Duration) float64 { return 2 * math.Pi * after.Seconds() / period.Seconds() }
	return 1 + 0.4*math.Sin(turns(20*time.Second)) + 0.3*math.Sin(turns(2*time.Minute))
}

// ownClient returns a client that goes straight to the address: through no proxy,
// and not where an answer redirects.
func ownClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: inFlight},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       patience,
	}
}

// A caller sends samples and counts the answers.
type caller struct {
	base   string // of URLs
	client *http.Client
	tally  *tally
}

// call sends a sample. It is no error that ctx ended.
func (c *caller) call(ctx context.Context, s sample) error {
	a, err := c.ask(ctx, s)
	if err == nil {
		c.tally.add(s.customer, a)
	} else if ctx.Err() == nil {
		return fmt.Errorf("%w: is it served? Start it in another terminal: make run", err)
	}
	return nil
}

// An answer is what became of a sample.
type answer struct {
	status int
	left   bool // the client went before the answer's end
}

func (c *caller) ask(ctx context.Context, s sample) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, s.method, c.base+s.path, strings.NewReader(s.body))
	if err != nil {
		return answer{}, fmt.Errorf("make a request: %w", err)
	}
	for name, value := range s.header {
		r.Header.Set(name, value)
	}
	response, err := c.client.Do(r)
	if err != nil {
		return answer{}, fmt.Errorf("send a request: %w", err)
	}
	defer response.Body.Close()
	a := answer{status: response.StatusCode}
	if s.leave > 0 && a.status == http.StatusOK {
		_, err = io.CopyN(io.Discard, response.Body, s.leave)
		a.left = err == nil
		if errors.Is(err, io.EOF) { // it was shorter
			err = nil
		}
	} else {
		_, err = io.Copy(io.Discard, response.Body)
	}
	if err != nil {
		return answer{}, fmt.Errorf("read the answer to %s %s: %w", s.method, s.path, err)
	}
	return a, nil
}
