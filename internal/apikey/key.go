// Package apikey holds API keys: their secrets, which redact themselves, their
// hashes, and the directory that finds a key's record.
//
// It does not know where records come from, how keys travel in requests, or
// what a tier grants.
package apikey

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"regexp"
	"strings"
)

const (
	// Prefix begins every key made by New. Secret scanners know keys by it.
	Prefix = "tg_live_"
	// MaxLen is the longest key, in bytes.
	MaxLen = 512

	// minForeign is the shortest key made elsewhere that is taken up, in bytes. It is short
	// because the keys of others are what they are; a shorter one could be found by asking.
	minForeign  = 8
	randomLen   = 26 // letters of base 32, see crypto/rand.Text: 130 bits
	checksumLen = 6  // letters of base 62: a CRC-32 always fits
	redacted    = "[API key redacted]"
	alphabet    = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// ErrMalformed says that a text cannot be a key, whatever the directory holds.
var ErrMalformed = errors.New("malformed API key")

// A Key is a secret. Whatever prints, logs or encodes it gets a placeholder.
// The secret lies behind a pointer because fmt does not ask unexported fields
// of other structs to format themselves; it would print a string, but never
// follows a pointer.
type Key struct {
	secret *string
}

// New makes a key: the prefix, 26 random letters and a checksum.
func New() Key {
	body := Prefix + rand.Text()
	return keyOf(body + checksum(body))
}

// NewID makes a key ID, which is public: "key_" and 16 random letters.
func NewID() string { return "key_" + strings.ToLower(rand.Text()[:16]) }

// Parse reads a key. It refuses with ErrMalformed what no directory can hold:
// an empty or an overlong text, anything but visible ASCII, a comma (which
// would be two keys in one header), and a key of ours whose checksum is wrong.
func Parse(text string) (Key, error) {
	if text == "" || len(text) > MaxLen {
		return Key{}, ErrMalformed
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c > '~' || c == ',' {
			return Key{}, ErrMalformed
		}
	}
	if strings.HasPrefix(text, Prefix) {
		split := len(text) - checksumLen
		if len(text) != len(Prefix)+randomLen+checksumLen || text[split:] != checksum(text[:split]) {
			return Key{}, ErrMalformed
		}
	}
	return keyOf(text), nil
}

// ParseForeign reads a key that is to be taken up, which may be made elsewhere: of at least 8
// bytes, else as Parse. Its error says what is wanted, and nothing of the text.
func ParseForeign(text string) (Key, error) {
	k, err := Parse(text)
	if err != nil || len(text) < minForeign {
		return Key{}, fmt.Errorf("cannot be a key: want %d to %d visible ASCII characters without a comma and, after %s, a right checksum", minForeign, MaxLen, Prefix)
	}
	return k, nil
}

func keyOf(secret string) Key { return Key{&secret} }

// Reveal returns the secret. Its one use is to show a new key to its owner.
func (k Key) Reveal() string { return k.text() }

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k.secret == nil }

// Equal reports in constant time whether two keys are the same.
func (k Key) Equal(o Key) bool {
	return subtle.ConstantTimeCompare([]byte(k.text()), []byte(o.text())) == 1
}

func (k Key) text() string {
	if k.secret == nil {
		return ""
	}
	return *k.secret
}

// String implements fmt.Stringer and redacts.
func (k Key) String() string { return redacted }

// Format implements fmt.Formatter, so that every verb redacts.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler and redacts.
func (k Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer and redacts.
func (k Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// checksum is the CRC-32 (IEEE) of a text in base 62.
func checksum(text string) string {
	n := crc32.ChecksumIEEE([]byte(text))
	letters := make([]byte, checksumLen)
	for i := len(letters) - 1; i >= 0; i-- {
		letters[i] = alphabet[n%62]
		n /= 62
	}
	return string(letters)
}

// errPublic says what is wrong with a text that holds a key and is no place for one.
var errPublic = errors.New("has what looks like a key: others can see this, so it must hold no secret")

// CheckPublic returns what is wrong with a text that others can see, such as a name, where it has
// in it what looks like a key of New, in capitals or not: the random letters of a key are all
// capitals, so whoever sees them in small ones has the key. The error has nothing of the text.
func CheckPublic(text string) error {
	for i := range len(text) - len(Prefix) + 1 {
		if strings.EqualFold(text[i:i+len(Prefix)], Prefix) {
			return errPublic
		}
	}
	return nil
}

// ours is a key of New, or what looks like one, within a text, in capitals or not.
var ours = regexp.MustCompile(`(?i)` + Prefix + `\w+`)

// Redact returns a text without the keys of New that stand in it, such as an error that repeats what
// was given in the place of something else.
func Redact(text string) string { return ours.ReplaceAllString(text, Prefix+"…") }

// Redacting wraps any secret text in a Key, so that it redacts itself.
func Redacting(secret string) Key { return keyOf(secret) }
