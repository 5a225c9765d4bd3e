package apikey

import (
	"errors"
	"strings"
	"time"
)

// Reasons why a request is nobody's, besides ErrMalformed, ErrRevoked and
// ErrExpired.
var (
	ErrMissing = errors.New("no API key")
	ErrSeveral = errors.New("more than one API key")
	ErrUnknown = errors.New("unknown API key")
	ErrUnread  = errors.New("the directory of keys has not been read yet")
)

// Admissible returns why a record's key may not be used: ErrUnknown for a demo key
// that is not allowed, ErrRevoked or ErrExpired.
func (r *Record) Admissible(demo bool, now time.Time) error {
	if r.Demo && !demo {
		return ErrUnknown
	}
	return r.Usable(now)
}

// maxCredentials is how many texts of a request are looked at. A client has no use for
// more than one, sent in a few ways.
const maxCredentials = 16

// only parses credentials, all of which must be the same key. Too many of them are
// ErrSeveral.
func only(credentials []string) (Key, error) {
	if len(credentials) > maxCredentials {
		return Key{}, ErrSeveral
	}
	var found Key
	for _, text := range credentials {
		key, err := Parse(text)
		if err != nil {
			return Key{}, err
		}
		if !found.IsZero() && !found.Equal(key) {
			return Key{}, ErrSeveral
		}
		found = key
	}
	if found.IsZero() {
		return Key{}, ErrMissing
	}
	return found, nil
}

// AppendCredentials adds the texts in a header's value that may be keys. A
// comma separates the values of a header that was sent more than once. In an
// Authorization header only the Bearer scheme carries a key (RFC 6750, 2.1);
// elsewhere the whole value is one. Once there are more than any request may have, no
// further ones are added.
func AppendCredentials(credentials []string, value string, authorization bool) []string {
	for value != "" && len(credentials) <= maxCredentials {
		var one string
		one, value, _ = strings.Cut(value, ",")
		one = strings.TrimSpace(one)
		if authorization {
			scheme, token, _ := strings.Cut(one, " ")
			if !strings.EqualFold(scheme, "bearer") {
				continue
			}
			one = strings.TrimSpace(token)
		}
		if one != "" {
			credentials = append(credentials, one)
		}
	}
	return credentials
}
