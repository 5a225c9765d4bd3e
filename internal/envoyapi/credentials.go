package envoyapi

import (
	"errors"
	"strings"

	"github.com/tiergate/tiergate/internal/apikey"
)

// oneKey parses the credentials of a request. All must be the same key.
func oneKey(credentials []string) (apikey.Key, *problem) {
	var found apikey.Key
	for _, text := range credentials {
		key, err := apikey.Parse(text)
		if err != nil {
			p := invalidKey
			return apikey.Key{}, &p
		}
		if !found.IsZero() && !found.Equal(key) {
			p := twoKeys
			return apikey.Key{}, &p
		}
		found = key
	}
	if found.IsZero() {
		p := missingKey
		return apikey.Key{}, &p
	}
	return found, nil
}

// appendCredentials adds the texts in a header's value that may be keys. A
// comma separates the values of a header that was sent more than once. In an
// Authorization header only the Bearer scheme carries a key (RFC 6750, 2.1);
// elsewhere the whole value is one.
func appendCredentials(credentials []string, value string, authorization bool) []string {
	for value != "" {
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

// unusable returns what the holder of a withdrawn key is told.
func unusable(err error) problem {
	if errors.Is(err, apikey.ErrExpired) {
		return expiredKey
	}
	return revokedKey
}
