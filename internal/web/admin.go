package web

import (
	"context"
	_ "embed" // for openapi.yaml
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// AdminPath is where the admin API is, without a slash at the end.
const AdminPath = "/admin/v1"

const (
	maxBody       = 1 << 20 // bytes
	maxImportBody = 4 << 20
)

// openAPI describes the admin API.
//
//go:embed openapi.yaml
var openAPI []byte

// A KeyStore is where the keys are that the admin API makes and changes.
type KeyStore interface {
	// Read returns the record as it is in the store, or apikey.ErrUnknown.
	Read(ctx context.Context, id string) (apikey.Record, error)
	// Write makes all changes or none, and returns the records with their new
	// revisions; or apikey.ErrConflict, ErrTaken or ErrLost.
	Write(ctx context.Context, changes []apikey.Change) ([]apikey.Record, error)
	// Events returns what was done to a key, or to all, before an event: the latest
	// first, at most so many; or apikey.ErrNoEvent where before cannot be one.
	Events(ctx context.Context, keyID, before string, most int) ([]apikey.Event, error)
}

// KeyUsage is what the admin API shows of the usage of keys.
type KeyUsage interface {
	Usage
	// LastUsed returns when each of at most 1,000 accounts was last used; those that
	// were not are not in it.
	LastUsed(ctx context.Context, accounts []string) (map[string]time.Time, error)
}

// AdminAccounts is what the admin API knows of the configuration in use. It is swapped
// whole and never changed.
type AdminAccounts struct {
	Tokens        []AdminToken // none: only callers on this machine may ask
	Keys          apikey.Keyring
	Plans         map[string]*quota.Plan // by tier name
	Resources     []quota.Resource
	Peppers       []apikey.Pepper
	AllowDemoKeys bool
}

// AdminOptions are the parts of an Admin. All are needed.
type AdminOptions struct {
	Accounts  *AdminAccounts
	Keys      KeyStore
	Stored    *apikey.Stored // takes up at once what is written to Keys
	Usage     KeyUsage
	Fleet     Fleet
	Limiter   *quota.Limiter
	Explainer Explainer
	Loopback  bool // whether only this machine reaches the listener: else tokens are needed
	Now       func() time.Time
}

// Admin is the API for operators: it makes, changes and revokes the keys of the store,
// and shows all keys, what they use, and how the fleet does. Keys of the file it only
// shows. It is safe for concurrent use.
type Admin struct {
	guesses     *visits     // wrong tokens, of addresses
	loopback    bool        // whether only this machine reaches it
	closed      atomic.Bool // there were tokens once: where there are none, that is no invitation
	sessions    operatorSessions
	crossOrigin *http.CrossOriginProtection
	accounts    atomic.Pointer[AdminAccounts]
	keys        KeyStore
	stored      *apikey.Stored
	usage       KeyUsage
	fleet       Fleet
	limiter     *quota.Limiter
	explainer   Explainer
	now         func() time.Time
	listing     listing
}

// NewAdmin returns the API.
func NewAdmin(o AdminOptions) *Admin {
	a := &Admin{
		guesses: newVisits(wrongTokensPerMinute/60.0, wrongTokensAtOnce), loopback: o.Loopback,
		sessions: newOperatorSessions(), crossOrigin: http.NewCrossOriginProtection(), keys: o.Keys, stored: o.Stored,
		usage: o.Usage, fleet: o.Fleet, limiter: o.Limiter, explainer: o.Explainer, now: o.Now,
	}
	a.Use(o.Accounts)
	return a
}

// Use makes the API know another configuration, from the next request on. Where it takes
// away all tokens, nobody is answered until there are some again: a token that has leaked
// is no reason to let everybody in.
func (a *Admin) Use(accounts *AdminAccounts) {
	if before := a.accounts.Load(); before != nil && len(before.Tokens) > 0 {
		a.closed.Store(true) // before anybody can find none
	}
	a.accounts.Store(accounts)
}

// An endpoint is one operation of the API. What it returns is the body of an answer.
type endpoint struct {
	method, path string // the path below AdminPath
	status       int    // when it went well
	serve        func(*call) (any, error)
}

// ask serves a call. What takes a body is told everything in that, and anything else in
// parameters: what stands in the other would be overlooked.
func (e endpoint) ask(c *call) (any, error) {
	if e.method == http.MethodPost || e.method == http.MethodPatch {
		if err := c.query().end(); err != nil {
			return nil, err
		}
		return e.serve(c)
	}
	o, err := newObject(c.body)
	if err != nil {
		return nil, err
	}
	if o.end(); o.err() != nil {
		return nil, o.err()
	}
	return e.serve(c)
}

// A call is a request to an endpoint.
type call struct {
	*http.Request

	who      string // what the audit log calls the caller
	now      time.Time
	accounts *AdminAccounts
	body     []byte
}

func (a *Admin) endpoints() []endpoint {
	return []endpoint{
		{http.MethodGet, "/keys", http.StatusOK, a.list},
		{http.MethodPost, "/keys", http.StatusCreated, a.create},
		{http.MethodGet, "/keys/{id}", http.StatusOK, a.show},
		{http.MethodPatch, "/keys/{id}", http.StatusOK, a.patch},
		{http.MethodPost, "/keys/{id}/overrides", http.StatusOK, a.setOverride},
		{http.MethodDelete, "/keys/{id}/overrides", http.StatusOK, a.removeOverride},
		{http.MethodPost, "/keys/{id}/revoke", http.StatusOK, a.revoke},
		{http.MethodPost, "/keys/{id}/rotate", http.StatusOK, a.rotate},
		{http.MethodGet, "/keys/{id}/usage", http.StatusOK, a.series},
		{http.MethodGet, "/keys/{id}/limits", http.StatusOK, a.limits},
		{http.MethodGet, "/keys/{id}/refusals", http.StatusOK, a.refusals},
		{http.MethodPost, "/keys/{id}/explain", http.StatusOK, a.explain},
		{http.MethodPost, "/keys/import", http.StatusOK, a.importKeys},
		{http.MethodGet, "/keys/export", http.StatusOK, a.exportKeys},
		{http.MethodGet, "/instances", http.StatusOK, a.instances},
		{http.MethodGet, "/fleet/usage", http.StatusOK, a.fleetSeries},
		{http.MethodGet, "/top", http.StatusOK, a.top},
		{http.MethodGet, "/near", http.StatusOK, a.near},
		{http.MethodGet, "/audit", http.StatusOK, a.audit},
		{http.MethodGet, "/tiers", http.StatusOK, a.tiers},
	}
}

// Handler serves everything below AdminPath. Its description, openapi.yaml, is for
// everyone.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, e := range a.endpoints() {
		mux.HandleFunc(e.method+" "+AdminPath+e.path, a.handle(e))
	}
	mux.HandleFunc("GET "+AdminPath+"/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openAPI) // nobody to tell if the caller is gone
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if _, pattern := mux.Handler(r); pattern == "" {
			a.nowhere(w, r, mux)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// handle lets those who may ask reach the endpoint.
func (a *Admin) handle(e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, now: a.now().UTC(), accounts: a.accounts.Load()}
		var p *Problem
		if c.who, p = a.who(r, c.accounts, c.now); p == nil {
			most := int64(maxBody)
			if e.path == "/keys/import" {
				most = maxImportBody
			}
			c.body, p = readBody(w, r, most)
		}
		var body any
		if p == nil {
			var err error
			if body, err = e.ask(c); err != nil {
				p = problemOf(err)
			}
		}
		if p != nil {
			p.answer(w)
			return
		}
		answer(w, e.status, body)
	}
}

// readBody reads a body of JSON; none is an empty object. A page of another site cannot
// send this content type unasked.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, *Problem) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problem(kindTooLarge, "send at most "+bytesText(most))
	case err != nil:
		return nil, invalid([]Fault{{"", "the body could not be read to its end"}})
	case len(body) == 0:
		return []byte("{}"), nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || (kind != "application/json" && kind != "application/merge-patch+json") {
		return nil, problem(kindMediaType, "send it with Content-Type: application/json")
	}
	return body, nil
}

// nowhere answers requests for which there is no endpoint, in the shape of all errors.
func (a *Admin) nowhere(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	_, p := a.who(r, a.accounts.Load(), a.now())
	if p == nil {
		tried := &discarded{header: http.Header{}}
		mux.ServeHTTP(tried, r)
		p = problem(kindNoPage, AdminPath+"/openapi.yaml says what there is")
		if allow := tried.header.Get("Allow"); tried.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", allow)
			p = problem(kindMethod, "it knows "+allow)
		}
	}
	p.answer(w)
}

// discarded keeps only the status and the headers of an answer.
type discarded struct {
	header http.Header
	status int
}

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) Write(b []byte) (int, error) { return len(b), nil }
func (d *discarded) WriteHeader(status int)      { d.status = status }

// isNull reports whether a JSON value is null.
func isNull(value json.RawMessage) bool { return strings.TrimSpace(string(value)) == "null" }
