package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// An AdminToken lets its holder use the admin API.
type AdminToken struct {
	Name string            // what the audit log calls the holder
	Hash [sha256.Size]byte // SHA-256 of the token
}

// loopback is what the audit log calls those who need no token.
const loopback = "loopback"

// who returns what the audit log calls the caller, or why it may not ask.
func (a *Admin) who(r *http.Request, now time.Time) (string, *Problem) {
	if len(a.tokens) == 0 {
		return loopback, a.local(r)
	}
	from := network(r.RemoteAddr)
	if wait := a.failures.wait(from, now); wait > 0 {
		p := problem(kindTooMany, "")
		p.retryAfter = wait
		return "", p
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", problem(kindToken, "send it in a header: Authorization: Bearer TOKEN")
	}
	sum, name, found := sha256.Sum256([]byte(token)), "", false
	for _, t := range a.tokens { // all of them, so that the time says nothing
		if subtle.ConstantTimeCompare(sum[:], t.Hash[:]) == 1 {
			name, found = t.Name, true
		}
	}
	if !found {
		a.failures.add(from, now)
		return "", problem(kindToken, "the token is none of those configured")
	}
	a.failures.trust(from)
	return name, nil
}

// local returns why the caller is not on this machine, or is not to be believed: a page
// in a browser of this machine is not the one who sits before it, and what comes through
// a proxy comes from elsewhere.
func (a *Admin) local(r *http.Request) *Problem {
	const mend = ": configure a token and send it"
	address, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !address.Addr().Unmap().IsLoopback() {
		return problem(kindLocal, "you are elsewhere"+mend)
	}
	for _, header := range []string{"Forwarded", "X-Forwarded-For", "Via"} {
		if r.Header.Get(header) != "" {
			return problem(kindLocal, "you came through a proxy"+mend)
		}
	}
	if !loopbackHost(r.Host) {
		return problem(kindLocal, "the request names another host than localhost"+mend)
	}
	if err := a.crossOrigin.Check(r); err != nil {
		return problem(kindLocal, "the request comes from another site's page")
	}
	return nil
}

// loopbackHost reports whether a Host header names this machine and nothing else: a
// foreign name that leads here is another site's.
func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && address.Unmap().IsLoopback()
}

// network is what counts as one caller: an address, of IPv6 the network of 64 bits that
// a single machine has to itself.
func network(remote string) string {
	parsed, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	address := parsed.Addr().Unmap().WithZone("")
	if address.Is4() {
		return address.String()
	}
	prefix, err := address.Prefix(64)
	if err != nil {
		return address.String()
	}
	return prefix.String()
}

const (
	// Wrong tokens of one caller, and of all.
	failuresEvery, failuresAtOnce       = 6 * time.Second, 10
	allFailuresEvery, allFailuresAtOnce = 100 * time.Millisecond, 200
	// guessers is how many callers are remembered; beyond that some are forgotten.
	guessers = 10_000
)

// failures limits how many wrong tokens are looked at. A caller who has shown a right
// one is not held up by the wrong ones of others. The zero value is ready.
type failures struct {
	mu      sync.Mutex
	all     *rate.Limiter
	callers map[string]*caller
}

type caller struct {
	failures *rate.Limiter
	trusted  bool
}

// wait returns how long a caller's next token is not looked at.
func (f *failures) wait(from string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready()
	c := f.callers[from]
	if c != nil {
		if wait := until(c.failures, now, failuresEvery); wait > 0 || c.trusted {
			return wait
		}
	}
	return until(f.all, now, allFailuresEvery)
}

// until is when there is a whole token again, which takes every to grow.
func until(l *rate.Limiter, now time.Time, every time.Duration) time.Duration {
	return time.Duration(max(0, 1-l.TokensAt(now)) * float64(every))
}

// add counts a wrong token.
func (f *failures) add(from string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready()
	f.all.AllowN(now, 1)
	f.of(from).failures.AllowN(now, 1)
}

// trust notes that a caller has shown a right token.
func (f *failures) trust(from string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready()
	f.of(from).trusted = true
}

func (f *failures) ready() {
	if f.callers == nil {
		f.all, f.callers = rate.NewLimiter(rate.Every(allFailuresEvery), allFailuresAtOnce), map[string]*caller{}
	}
}

func (f *failures) of(from string) *caller {
	c := f.callers[from]
	if c == nil {
		for other := range f.callers {
			if len(f.callers) < guessers {
				break
			}
			delete(f.callers, other)
		}
		c = &caller{failures: rate.NewLimiter(rate.Every(failuresEvery), failuresAtOnce)}
		f.callers[from] = c
	}
	return c
}
