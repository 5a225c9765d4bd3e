package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/gorilla/securecookie"
)

// sessionLife is how long a browser stays signed in without signing in again.
const sessionLife = 12 * time.Hour

// sessions are kept by browsers, in a cookie that is signed and that scripts and other
// sites' pages cannot use. Nothing is kept here: what a session may do is looked up
// with every request, so that it ends with the key.
type sessions struct {
	cookie string // its name, which is part of what is signed
	path   string
	codec  *securecookie.SecureCookie
}

// newSessions returns sessions that every process with the same secret understands.
func newSessions(cookie, path string, secret []byte) *sessions {
	codec := securecookie.New(secret, nil)
	codec.MaxAge(int(sessionLife / time.Second))
	codec.SetSerializer(securecookie.JSONEncoder{})
	return &sessions{cookie: cookie, path: path, codec: codec}
}

// begin signs a browser in. What is in the session is signed, not hidden.
func (s *sessions) begin(w http.ResponseWriter, r *http.Request, session any) error {
	value, err := s.codec.Encode(s.cookie, session)
	if err != nil {
		return err //nolint:wrapcheck // it says all there is
	}
	http.SetCookie(w, s.make(r, value, int(sessionLife/time.Second)))
	return nil
}

// read returns whether the request carries a session, and puts it into session.
func (s *sessions) read(r *http.Request, session any) bool {
	c, err := r.Cookie(s.cookie)
	return err == nil && s.codec.Decode(s.cookie, c.Value, session) == nil
}

// sent returns whether the request carries what may be a session, good or not.
func (s *sessions) sent(r *http.Request) bool {
	_, err := r.Cookie(s.cookie)
	return err == nil
}

// end signs the browser out.
func (s *sessions) end(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, s.make(r, "", -1))
}

func (s *sessions) make(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{ //nolint:gosec // Secure wherever the site has TLS; elsewhere browsers would not send it
		Name: s.cookie, Value: value, Path: s.path, MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	}
}

// fingerprint stands in a session for what it was opened with. It tells nothing of it to
// those who do not have the secret.
func fingerprint(secret []byte, opened string) string {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write([]byte("opened by " + opened)) // never fails, see hash.Hash
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
