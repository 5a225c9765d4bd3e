package web

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"net/http"
)

// operatorCookie is the name of the cookie of those who have signed in with a token.
const operatorCookie = "tiergate_operator"

// An operatorSession is what a cookie says: whose token opened the session, and which
// token that was. It tells neither the token nor its hash.
type operatorSession struct {
	Name   string `json:"name"`
	Opened string `json:"opened"`
}

// operatorSessions are those of browsers that have signed in with a token. They end with
// the process, whose secret signs them, and with the token.
//
// A cookie belongs to a host, whatever the port: with the path / it would go to whatever
// else answers there, such as Envoy and all behind it. So there is one for each path
// that needs it.
type operatorSessions struct {
	secret []byte
	api    *sessions
	pages  *sessions
}

func newOperatorSessions() operatorSessions {
	secret := make([]byte, MinSessionSecret)
	_, _ = rand.Read(secret) // never fails
	return operatorSessions{secret, newSessions(operatorCookie, AdminPath, secret), newSessions(operatorCookie, dashboardPath, secret)}
}

// begin signs a browser in.
func (s *operatorSessions) begin(w http.ResponseWriter, r *http.Request, t AdminToken) error {
	session := operatorSession{t.Name, s.fingerprint(t)}
	if err := s.api.begin(w, r, session); err != nil {
		return err
	}
	return s.pages.begin(w, r, session)
}

// end signs the browser out.
func (s *operatorSessions) end(w http.ResponseWriter, r *http.Request) {
	s.api.end(w, r)
	s.pages.end(w, r)
}

// sent returns whether the request carries what may be a session, good or not.
func (s *operatorSessions) sent(r *http.Request) bool { return s.api.sent(r) }

func (s *operatorSessions) fingerprint(t AdminToken) string {
	return fingerprint(s.secret, hex.EncodeToString(t.Hash[:]))
}

// signedIn returns the name of the token that opened the request's session, if it is
// still one of those configured.
func (a *Admin) signedIn(r *http.Request, accounts *AdminAccounts) (string, *Problem) {
	var s operatorSession
	read := a.sessions.api.read(r, &s)
	for _, t := range accounts.Tokens {
		if !read || t.Name != s.Name || !hmac.Equal([]byte(a.sessions.fingerprint(t)), []byte(s.Opened)) {
			continue
		}
		if err := a.crossOrigin.Check(r); err != nil {
			return "", problem(kindOtherSite, "a session is for the pages of this server")
		}
		return t.Name, nil
	}
	return "", problem(kindToken, "the session is over: sign in again, or send a header: Authorization: Bearer TOKEN")
}
