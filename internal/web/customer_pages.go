package web

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
)

const (
	dashboardPath = "/dashboard"
	signInPath    = dashboardPath + "/signin"
	sessionPath   = dashboardPath + "/session" // what the sign-in's form is sent to
	// maxForm is how long the form of a sign-in may be, in bytes.
	maxForm = 4096

	guessesPerMinute = 6
	guessesAtOnce    = 10

	viewsPerSecond = 10 // of a key's dashboards together
	viewsAtOnce    = 60
)

// dashboard is what the pages for the holders of keys need beside the API.
type dashboard struct {
	sessions *sessions
	secret   []byte
	page     *template.Template
	signIn   *template.Template
	assets   map[string]asset
	views    *visits // of keys
	guesses  *visits // of addresses: sign-ins that failed
}

func newDashboard(secret []byte) (dashboard, error) {
	d := dashboard{
		sessions: newSessions("tiergate_session", dashboardPath, secret), secret: secret,
		views: newVisits(viewsPerSecond, viewsAtOnce), guesses: newVisits(guessesPerMinute/60.0, guessesAtOnce),
	}
	var err error
	if d.assets, err = newAssets(append(sharedAssets(), "customer.css", "customer.js")...); err != nil {
		return dashboard{}, err
	}
	if d.page, err = template.ParseFS(page, "page/customer.html", "page/usage.html"); err != nil {
		return dashboard{}, fmt.Errorf("read the dashboard's page: %w", err)
	}
	if d.signIn, err = template.ParseFS(page, "page/signin.html"); err != nil {
		return dashboard{}, fmt.Errorf("read the sign-in page: %w", err)
	}
	return d, nil
}

// pages serves all below /dashboard.
func (c *Customers) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+dashboardPath, c.home)
	mux.Handle("GET "+dashboardPath+"/{$}", http.RedirectHandler(dashboardPath, http.StatusSeeOther))
	mux.HandleFunc("GET "+signInPath, func(w http.ResponseWriter, r *http.Request) {
		problem := ""
		if r.URL.Query().Has("over") {
			problem = "Your session is over. Please sign in again."
		}
		c.signInPage(w, http.StatusOK, problem)
	})
	mux.HandleFunc("POST "+sessionPath, c.signIn)
	mux.Handle("GET "+sessionPath, http.RedirectHandler(signInPath, http.StatusSeeOther)) // from the address bar after a failed sign-in
	mux.HandleFunc("POST "+dashboardPath+"/signout", func(w http.ResponseWriter, r *http.Request) {
		c.dashboard.sessions.end(w, r)
		http.Redirect(w, r, signInPath, http.StatusSeeOther)
	})
	mux.HandleFunc("GET "+dashboardPath+"/api/limits", c.signedIn(c.limits))
	mux.HandleFunc("GET "+dashboardPath+"/api/usage", c.signedIn(c.series))
	mux.HandleFunc("GET "+dashboardPath+"/api/refusals", c.signedIn(c.refusals))
	mux.Handle("GET "+dashboardPath+"/assets/", http.StripPrefix(dashboardPath+"/assets/", serveAssets(c.dashboard.assets)))
	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c.signInPage(w, http.StatusForbidden, "That form was another site's. Please sign in here.")
	}))
	return secured(own.Handler(mux))
}

// home answers with the dashboard, or leads to the sign-in.
func (c *Customers) home(w http.ResponseWriter, r *http.Request) {
	_, err := c.holder(r, c.accounts.Load())
	if err == nil {
		w.Header().Set("Content-Type", htmlType)
		_ = c.dashboard.page.Execute(w, nil) // nobody to tell if the caller is gone
		return
	}
	if errors.Is(err, apikey.ErrUnread) {
		c.unread(w)
		return
	}
	to := signInPath
	if c.dashboard.sessions.sent(r) {
		c.dashboard.sessions.end(w, r)
		to += "?over"
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// signInPage asks for a key. The problem is text for people.
func (c *Customers) signInPage(w http.ResponseWriter, status int, problem string) {
	w.Header().Set("Content-Type", htmlType)
	w.WriteHeader(status)
	_ = c.dashboard.signIn.Execute(w, problem) // nobody to tell if the caller is gone
}

// unread answers while the store's keys have not been read. A session that there is
// goes on after that.
func (c *Customers) unread(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	c.signInPage(w, http.StatusServiceUnavailable, "API keys cannot be looked up at the moment. Please try again shortly.")
}

// signIn begins a session for the key in the form. A right key is let in whatever others
// have guessed from the same address; too many wrong ones learn when to try again.
func (c *Customers) signIn(w http.ResponseWriter, r *http.Request) {
	a, now := c.accounts.Load(), c.now()
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		c.signInPage(w, http.StatusBadRequest, "That form cannot be read. Please try again.")
		return
	}
	var credentials []string
	for _, text := range r.PostForm["key"] { // never from the URL
		if text = strings.TrimSpace(text); text != "" {
			credentials = append(credentials, text)
		}
	}
	record, hash, err := a.Keys.Identify(credentials, a.AllowDemoKeys, now)
	switch {
	case errors.Is(err, apikey.ErrMissing):
		c.signInPage(w, http.StatusUnauthorized, "Please enter your API key.")
		return
	case errors.Is(err, apikey.ErrUnread):
		c.unread(w)
		return
	case err != nil:
		c.refuseGuess(w, r, err)
		return
	}
	if err := c.dashboard.sessions.begin(w, r, keySession{record.ID, c.dashboard.fingerprint(hash)}); err != nil {
		c.log.ErrorContext(r.Context(), "cannot begin a session", "error", err)
		c.signInPage(w, http.StatusInternalServerError, "You could not be signed in. Please try again later.")
		return
	}
	http.Redirect(w, r, dashboardPath, http.StatusSeeOther)
}

// refuseGuess says why a key is not let in, as often as guesses allows.
func (c *Customers) refuseGuess(w http.ResponseWriter, r *http.Request, err error) {
	wait := c.dashboard.guesses.wait(clientAddress(r), c.now())
	if wait == 0 {
		c.signInPage(w, http.StatusUnauthorized, apierror.OfKey(err, c.accounts.Load().KeyHeaders).Message)
		return
	}
	seconds := strconv.FormatInt(apierror.Up(wait, time.Second), 10)
	w.Header().Set("Retry-After", seconds)
	c.signInPage(w, http.StatusTooManyRequests, "Too many attempts. Please try again in "+seconds+" seconds.")
}

// A keySession is what a cookie says: which key signed in, and which of its secrets. It
// tells neither the secret nor its hash.
type keySession struct {
	KeyID  string `json:"key_id"`
	Opened string `json:"opened"`
}

// fingerprint stands for a hash.
func (d *dashboard) fingerprint(h apikey.Hash) string { return fingerprint(d.secret, h.String()) }

// holder returns the record of the key that is signed in and may still be used, with the
// secret that it was signed in with; else a reason of package apikey.
func (c *Customers) holder(r *http.Request, a *Accounts) (*apikey.Record, error) {
	var s keySession
	if !c.dashboard.sessions.read(r, &s) {
		return nil, apikey.ErrMissing
	}
	now := c.now()
	record := a.Keys.ByID(s.KeyID)
	if record == nil {
		return nil, a.Keys.Missing() //nolint:wrapcheck // a reason as it is
	}
	if err := record.Admissible(a.AllowDemoKeys, now); err != nil {
		return nil, err //nolint:wrapcheck // a reason as it is
	}
	for _, h := range record.Hashes() {
		if !hmac.Equal([]byte(c.dashboard.fingerprint(h)), []byte(s.Opened)) || record.Opens(h, now) != nil {
			continue
		}
		if found := a.Keys.ByHash(h); found != nil && found.ID == record.ID {
			return record, nil
		}
	}
	return nil, apikey.ErrRevoked
}

// signedIn hands on the requests of those who are signed in, as often as views allows.
func (c *Customers) signedIn(next accountHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := c.accounts.Load()
		record, err := c.holder(r, a)
		if errors.Is(err, apikey.ErrUnread) {
			unavailable(w)
			return
		}
		if err != nil {
			if c.dashboard.sessions.sent(r) {
				c.dashboard.sessions.end(w, r)
			}
			refuse(w, http.StatusUnauthorized, apierror.SessionOver)
			return
		}
		now := c.now()
		if wait := c.dashboard.views.wait(record.ID, now); wait > 0 {
			refuseVisit(w, now, wait)
			return
		}
		next(w, r, a, record)
	}
}

// clientAddress names whoever sent a request: what Envoy appended to X-Forwarded-For,
// else the connection's other end. Of IPv6 it is the network, of which one customer has
// many addresses.
func clientAddress(r *http.Request) string {
	text, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		text = r.RemoteAddr
	}
	if values := r.Header.Values("X-Forwarded-For"); len(values) > 0 {
		last := values[len(values)-1]
		text = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return "unknown"
	}
	return networkOf(ip)
}
