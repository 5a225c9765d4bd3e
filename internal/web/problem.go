package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
)

// A Problem is an error that the admin API answers with, in the shape of RFC 9457. Its
// texts hold no secret and no hash.
type Problem struct {
	Type   string  `json:"type"`             // urn:tiergate:problem: and one of the kinds
	Title  string  `json:"title"`            // the same for all of a type
	Status int     `json:"status,omitempty"` // always, in an answer
	Detail string  `json:"detail,omitempty"` // what was wrong, in one line
	Errors []Fault `json:"errors,omitempty"` // every fault of an invalid request; Detail is their Summary

	retryAfter time.Duration // 0: not said
}

// A Fault is what is wrong with one field of a body, such as overrides[0].max, or with
// one parameter.
type Fault struct {
	Field   string `json:"field"`
	Problem string `json:"problem"`
}

// String returns "field: problem".
func (f Fault) String() string { return strings.TrimPrefix(f.Field+": "+f.Problem, ": ") }

// Summary says in one line what is wrong: the first fault, and how many there are.
func Summary(faults []Fault) string {
	if len(faults) == 1 {
		return faults[0].String()
	}
	return fmt.Sprintf("%s; faults: %d, see errors", faults[0], len(faults))
}

// Error returns the title and the detail.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Title + ": " + p.Detail
}

// kind is what clients tell problems apart by.
type kind string

const (
	kindInvalid      kind = "invalid-request"
	kindToken        kind = "token-needed"
	kindLocal        kind = "local-only"
	kindOtherSite    kind = "other-site"
	kindNoKey        kind = "no-such-key"
	kindNoPage       kind = "not-found"
	kindMethod       kind = "method-not-allowed"
	kindConflict     kind = "conflict"
	kindTaken        kind = "taken"
	kindInFile       kind = "in-file"
	kindRevoked      kind = "revoked"
	kindNoTier       kind = "no-such-tier"
	kindGrace        kind = "rotation-in-grace"
	kindTooLarge     kind = "too-large"
	kindMediaType    kind = "media-type"
	kindTooMany      kind = "too-many-failures"
	kindStoreAway    kind = "store-away"
	kindStoreRefuses kind = "store-refuses"
	kindStoreEmptied kind = "store-emptied"
)

// problem returns one of a kind.
func problem(k kind, detail string) *Problem {
	p := &Problem{Type: "urn:tiergate:problem:" + string(k), Detail: detail}
	p.Status, p.Title = k.status()
	return p
}

func (k kind) status() (status int, title string) {
	switch k {
	case kindInvalid:
		return http.StatusBadRequest, "The request is not valid"
	case kindToken:
		return http.StatusUnauthorized, "A token is needed"
	case kindLocal:
		return http.StatusForbidden, "Only this machine may ask without a token"
	case kindOtherSite:
		return http.StatusForbidden, "The request is another site's"
	case kindNoKey:
		return http.StatusNotFound, "There is no such key"
	case kindNoPage:
		return http.StatusNotFound, "There is nothing at this path"
	case kindMethod:
		return http.StatusMethodNotAllowed, "The path knows no such method"
	case kindConflict:
		return http.StatusConflict, "Others are changing the key"
	case kindTaken:
		return http.StatusConflict, "There is such a key already"
	case kindInFile:
		return http.StatusConflict, "The key is in the file of keys"
	case kindRevoked:
		return http.StatusConflict, "The key is revoked"
	case kindNoTier:
		return http.StatusConflict, "The key's tier is not configured"
	case kindGrace:
		return http.StatusConflict, "The key has just been rotated"
	case kindTooLarge:
		return http.StatusRequestEntityTooLarge, "The body is too large"
	case kindMediaType:
		return http.StatusUnsupportedMediaType, "The body is not JSON"
	case kindTooMany:
		return http.StatusTooManyRequests, "Too many wrong tokens"
	case kindStoreEmptied:
		return http.StatusServiceUnavailable, "The store has lost the directory of keys"
	case kindStoreRefuses:
		return http.StatusServiceUnavailable, "The store refuses changes"
	case kindStoreAway:
		return http.StatusServiceUnavailable, "The store does not answer"
	}
	return http.StatusInternalServerError, string(k)
}

// problemOf is what the admin API answers with because of an error. One that says nothing else is
// of a store that cannot be read or written, or has not been read yet.
func problemOf(err error) *Problem {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, apikey.ErrUnknown):
		return noSuchKey()
	case errors.Is(err, apikey.ErrTaken):
		return problem(kindTaken, err.Error())
	case errors.Is(err, apikey.ErrConflict):
		return problem(kindConflict, err.Error())
	case errors.Is(err, apikey.ErrLost):
		return problem(kindStoreEmptied, err.Error())
	case errors.Is(err, apikey.ErrRefused):
		p = problem(kindStoreRefuses, err.Error())
	default:
		p = problem(kindStoreAway, err.Error())
	}
	p.retryAfter = time.Second
	return p
}

// unwritten is the error of a change that failed. Of a store that does not answer nobody
// knows whether it has made it.
func unwritten(err error) error {
	p := problemOf(err)
	if p.Type != problem(kindStoreAway, "").Type {
		return err
	}
	p.Detail += ": what was asked for may have been done all the same: look before you ask again"
	return p
}

// noSuchKey does not repeat what was asked for: it may be a secret in the wrong place.
func noSuchKey() *Problem {
	return problem(kindNoKey, "no key has this ID: GET /admin/v1/keys lists them")
}

// invalid is the problem of a request with faults.
func invalid(faults []Fault) *Problem {
	p := problem(kindInvalid, Summary(faults))
	p.Errors = faults
	return p
}

// answer writes the problem. A 401 says how to authenticate, as RFC 9110, 11.6.1 wants it.
func (p *Problem) answer(w http.ResponseWriter) {
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(apierror.Up(p.retryAfter, time.Second), 10))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // nobody to tell if the caller is gone
}
