package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
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

// holder returns the token that a secret is. A right one is let in whatever others have
// guessed; a caller whose wrong ones were too many learns when to try again.
func (a *Admin) holder(secret, from string, accounts *AdminAccounts, now time.Time) (AdminToken, *Problem) {
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
	if found {
		return holder, nil
	}
	if wait := a.guesses.wait(from, now); wait > 0 {
		p := problem(kindTooMany, "")
		p.retryAfter = wait
		return AdminToken{}, p
	}
	return AdminToken{}, problem(kindToken, "the token is none of those configured")
}

// local returns why the caller is not on this machine, or is not to be believed: a page
// in a browser of this machine is not the one who sits before it, and what comes through
// a proxy comes from elsewhere. A proxy that adds nothing cannot be told from a program
// of this machine: where others reach the port, tokens are needed.
func (a *Admin) local(r *http.Request) *Problem {
	const mend = ": configure a token and send it"
	switch {
	case a.closed.Load():
		return problem(kindLocal, "there were tokens, and all have been taken away: configure one, or start the server again")
	case !a.loopback:
		return problem(kindLocal, "operator.address is not one of this machine alone"+mend)
	}
	address, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || (address.Addr().Unmap() != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && address.Addr() != netip.IPv6Loopback()) {
		return problem(kindLocal, "you are elsewhere"+mend)
	}
	for name := range r.Header {
		if proxied(name) {
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

// proxied reports whether a header is one that proxies add.
func proxied(name string) bool {
	switch name {
	case "Forwarded", "Via", "X-Real-Ip", "X-Request-Id":
		return true
	default:
		return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Envoy-")
	}
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
	// Wrong tokens of one caller.
	wrongTokensPerMinute = 10
	wrongTokensAtOnce    = 10
)
