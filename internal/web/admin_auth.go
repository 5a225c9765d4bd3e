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

// who returns what the audit log calls the caller, or why it may not ask. It asks with a
// token, or with the session of a browser that has signed in with one.
func (a *Admin) who(r *http.Request, accounts *AdminAccounts, now time.Time) (string, *Problem) {
	if len(accounts.Tokens) == 0 {
		return loopback, a.local(r)
	}
	header := r.Header.Get("Authorization")
	if header == "" && a.sessions.sent(r) {
		return a.signedIn(r, accounts)
	}
	scheme, secret, _ := strings.Cut(header, " ")
	if secret = strings.TrimSpace(secret); !strings.EqualFold(scheme, "bearer") {
		secret = ""
	}
	token, p := a.holder(secret, network(r.RemoteAddr), accounts, now)
	if p != nil {
		return "", p
	}
	return token.Name, nil
}

// holder returns the token that a secret is, if there is one and the caller has not
// shown too many that are none.
func (a *Admin) holder(secret, from string, accounts *AdminAccounts, now time.Time) (AdminToken, *Problem) {
	if wait := a.failures.wait(from, now); wait > 0 {
		p := problem(kindTooMany, "")
		p.retryAfter = wait
		return AdminToken{}, p
	}
	if secret == "" {
		return AdminToken{}, problem(kindToken, "send it in a header: Authorization: Bearer TOKEN")
	}
	sum := sha256.Sum256([]byte(secret))
	var holder AdminToken
	found := false
	for _, t := range accounts.Tokens { // all of them, so that the time says nothing
		if subtle.ConstantTimeCompare(sum[:], t.Hash[:]) == 1 {
			holder, found = t, true
		}
	}
	if !found {
		a.failures.add(from, now)
		return AdminToken{}, problem(kindToken, "the token is none of those configured")
	}
	a.failures.trust(from)
	return holder, nil
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
	return networkOf(parsed.Addr())
}

// networkOf is the network of an address: of IPv4 the address itself.
func networkOf(address netip.Addr) string {
	if address = address.Unmap(); address.Is4() {
		return address.String()
	}
	return netip.PrefixFrom(address, 64).Masked().String()
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
