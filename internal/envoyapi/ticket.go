package envoyapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"strconv"
	"strings"
	"sync"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// A ticket is what Envoy gets for an admitted request and hands back when the
// answer has ended: the reservation, and what is needed to price the answer. Its
// secret has 130 random bits, or is a seal. It says nothing of the API key but the public ID.
type ticket struct {
	account, request, secret string
	resource                 string
	source                   quota.Source
	choices                  int64
	weight                   float64
	tokens, output           int64 // what was reserved, before it was cut to a limit; output is a part of tokens
}

// issue returns the text of the ticket for an admitted request, or "" where nobody is
// to hand one back. Where nothing is reserved, because no limit is on tokens, it only
// serves to learn what the answer has used.
func (t ticket) issue(s *Settings, q *inquiry, d *quota.Decision) string {
	switch {
	case d.Reservation != "":
		t.request, t.secret = d.Reservation, d.Secret
	case q.look || q.credit || d.Repeated || t.source == quota.ByNothing || !s.Tokens.settled():
		return ""
	default:
		t.secret = t.seal(s.TicketKey)
	}
	return t.String()
}

// reserves reports whether anything was reserved.
func (t ticket) reserves() bool { return t.request != "" }

// A TicketKey seals tickets for which nothing is reserved. It is safe for concurrent use.
type TicketKey struct {
	sealers sync.Pool // of *sealer
}

// A sealer seals one ticket after the other.
type sealer struct {
	mac  hash.Hash // has the key in it
	text [maxTicket]byte
	sum  [sha256.Size]byte
}

// NewTicketKey returns the TicketKey of a secret. All instances behind one Envoy need the
// same one.
func NewTicketKey(secret []byte) *TicketKey {
	return &TicketKey{sync.Pool{New: func() any { return &sealer{mac: hmac.New(sha256.New, secret)} }}}
}

// sealSize is how much of a MAC is a seal, in bytes.
const sealSize = 16

// seal returns what takes the secret's place where nothing is reserved, and so no store
// knows one: that the ticket is ours.
func (t ticket) seal(key *TicketKey) string {
	t.secret = ""
	s := key.sealers.Get().(*sealer) //nolint:forcetypeassert // see New
	defer key.sealers.Put(s)
	s.mac.Reset()
	_, _ = s.mac.Write(t.appendTo(s.text[:0])) // never fails, see hash.Hash
	return base64.RawURLEncoding.EncodeToString(s.mac.Sum(s.sum[:0])[:sealSize])
}

// ticketFields is how many parts a ticket's text has, the version before them.
const ticketFields = 10

// maxTicket is the longest text of a ticket, in bytes.
const maxTicket = 512

// guessed reports whether the request declared nothing, so that what was reserved for
// its answer is a guess.
func (t ticket) guessed() bool { return t.source == quota.ByHistory || t.source == quota.ByDefault }

// String returns the ticket's text.
func (t ticket) String() string {
	var space [maxTicket]byte
	return string(t.appendTo(space[:0]))
}

// appendTo appends the ticket's text.
func (t ticket) appendTo(b []byte) []byte {
	b = append(b, '1')
	for _, word := range [...]string{t.account, t.request, t.secret, t.resource, string(t.source)} {
		b = append(append(b, ':'), word...)
	}
	b = strconv.AppendInt(append(b, ':'), t.choices, 10)
	b = strconv.AppendFloat(append(b, ':'), t.weight, 'g', -1, 64)
	b = strconv.AppendInt(append(b, ':'), t.tokens, 10)
	return strconv.AppendInt(append(b, ':'), t.output, 10)
}

// errTicket does not repeat the text: it holds a secret.
var errTicket = errors.New("the reservation is no ticket of TierGate")

// parseTicket reads the text of a ticket. It refuses what could be no ticket, so
// that nothing else becomes part of the names of Redis keys, and what is not sealed with
// the key where nothing is reserved.
func parseTicket(text string, key *TicketKey) (ticket, error) {
	if len(text) > maxTicket {
		return ticket{}, errTicket
	}
	var f [ticketFields]string
	n := 0
	for field := range strings.SplitSeq(text, ":") {
		if n < len(f) {
			f[n] = field
		}
		n++
	}
	if n != len(f) || f[0] != "1" {
		return ticket{}, errTicket
	}
	t := ticket{account: f[1], request: f[2], secret: f[3], resource: f[4], source: quota.Source(f[5])}
	var errs [4]error
	t.choices, errs[0] = strconv.ParseInt(f[6], 10, 64)
	t.weight, errs[1] = strconv.ParseFloat(f[7], 64)
	t.tokens, errs[2] = strconv.ParseInt(f[8], 10, 64)
	t.output, errs[3] = strconv.ParseInt(f[9], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return ticket{}, errTicket // and not err, which repeats what stands there
	}
	sane := apikey.ValidID(t.account) && (!t.reserves() || plainID(t.request)) && plainID(t.secret) &&
		t.choices >= 1 && t.choices <= quota.MaxCost && t.weight > 0 && t.weight <= quota.MaxModelWeight && t.output >= 0 && t.tokens >= t.output && t.tokens <= 2*quota.MaxCost
	if !sane || (!t.reserves() && !hmac.Equal([]byte(t.secret), []byte(t.seal(key)))) {
		return ticket{}, errTicket
	}
	return t, nil
}

// maxPlainID is the longest ID that is taken as it is.
const maxPlainID = 40

// plainID reports whether a text can be taken as it is as the ID of a request.
func plainID(s string) bool {
	if s == "" || len(s) > maxPlainID {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// requestID returns what a request is called in the store: Envoy's ID, or a digest
// of it where it is no plain one; "" stays "".
func requestID(id string) string {
	if id == "" || plainID(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:maxPlainID/2])
}
