package apikey

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	schemeSHA256 = "sha256"
	schemeHMAC   = "hmac-sha256:" // followed by the name of the pepper
)

// pepperName is what a pepper may be called.
var pepperName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// A Hash is what is stored of a key: a scheme and a digest. Its text is
// "sha256:<hex>" or "hmac-sha256:<pepper>:<hex>". Hashes can be compared.
//
// A plain SHA-256 is enough for a long random secret: there is nothing to guess.
// A pepper keeps even a short one safe when the file of hashes is stolen alone.
type Hash struct {
	scheme string
	sum    sum
}

// A sum is the digest of a hash.
type sum [sha256.Size]byte

// ParseHash reads the text of a hash.
func ParseHash(text string) (Hash, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return Hash{}, errors.New("want sha256:<64 hexadecimal digits> or hmac-sha256:<pepper>:<64 hexadecimal digits>")
	}
	h := Hash{scheme: schemeSHA256}
	if text[:i] != schemeSHA256 {
		h.scheme = strings.Clone(text[:i]) // so as not to keep all of the text
	}
	if name, ok := strings.CutPrefix(h.scheme, schemeHMAC); h.scheme != schemeSHA256 && (!ok || !pepperName.MatchString(name)) {
		// The text is not repeated: it may be a secret in the wrong place.
		return Hash{}, errors.New("unknown scheme: want sha256:… or hmac-sha256:<pepper>:…")
	}
	sum, err := hex.DecodeString(text[i+1:])
	if err != nil || len(sum) != len(h.sum) {
		return Hash{}, fmt.Errorf("the digest is not %d hexadecimal digits", 2*len(h.sum))
	}
	copy(h.sum[:], sum)
	return h, nil
}

// String returns the hash's text. It is no secret, but no business of clients.
func (h Hash) String() string { return h.scheme + ":" + hex.EncodeToString(h.sum[:]) }

// Digest returns the hash without its scheme. Two hashes of one digest are one secret's, or
// made up by somebody.
func (h Hash) Digest() [sha256.Size]byte { return h.sum }

// Pepper returns the name of the pepper the hash was made with, or "".
func (h Hash) Pepper() string {
	name, _ := strings.CutPrefix(h.scheme, schemeHMAC)
	if name == h.scheme {
		return ""
	}
	return name
}

// A Pepper is a secret mixed into hashes. Like a Key it redacts itself.
type Pepper struct {
	name   string
	secret Key
}

// MinPepper is the shortest pepper, in bytes.
const MinPepper = 16

// NewPepper returns a named pepper of at least MinPepper bytes.
func NewPepper(name, secret string) (Pepper, error) {
	if !pepperName.MatchString(name) {
		return Pepper{}, errors.New("the pepper's name: want lower-case letters, digits, - and _, at most 32") // it may be the secret, in the wrong place
	}
	if len(secret) < MinPepper {
		return Pepper{}, fmt.Errorf("the pepper has %d bytes: want at least %d", len(secret), MinPepper)
	}
	return Pepper{name, keyOf(secret)}, nil
}

// Name returns what hashes call the pepper.
func (p Pepper) Name() string { return p.name }

// Hash returns the key's hash without a pepper.
func (k Key) Hash() Hash {
	var text [MaxLen]byte // on the stack, where a conversion would not be
	return Hash{scheme: schemeSHA256, sum: sha256.Sum256(append(text[:0], k.text()...))}
}

// HashWith returns the key's hash with a pepper.
func (k Key) HashWith(p Pepper) Hash {
	mac := hmac.New(sha256.New, []byte(p.secret.text()))
	_, _ = mac.Write([]byte(k.text())) // never fails, see hash.Hash
	h := Hash{scheme: schemeHMAC + p.name}
	mac.Sum(h.sum[:0])
	return h
}
