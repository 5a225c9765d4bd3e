package envoyapi

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/apikey"
)

// Identity says where another filter of Envoy, which has authenticated the caller,
// puts the key's ID and its tier. While KeyID is set, it is the only way in: what the
// client sends as a key is not looked at. The zero Identity believes nobody.
type Identity struct{ KeyID, Tier MetadataPath }

// A MetadataPath leads to a text in Envoy's filter metadata: a filter's namespace, and
// the names of fields from there. Without a namespace it leads nowhere.
type MetadataPath struct {
	Namespace string
	Fields    []string
}

// believed reports whether an ID that another filter names can stand in for a key.
func (s *Settings) believed() bool {
	return s.Identity.KeyID.Namespace != "" || s.RateLimit.Entries.KeyID != ""
}

// in returns the text that the path leads to. What is no text is "".
func (p MetadataPath) in(m *corev3.Metadata) string {
	if p.Namespace == "" || len(p.Fields) == 0 {
		return ""
	}
	value := m.GetFilterMetadata()[p.Namespace].GetFields()[p.Fields[0]]
	for _, field := range p.Fields[1:] {
		value = value.GetStructValue().GetFields()[field]
	}
	text, _ := value.GetKind().(*structpb.Value_StringValue)
	if text == nil {
		return ""
	}
	return text.StringValue
}

// identify reads who asks: what another filter says where that is believed, and else
// the credentials that the client sends.
func (q *inquiry) identify(s *Settings, f *checkFields) {
	if s.Identity.KeyID.Namespace != "" {
		q.elsewhere, q.keyID, q.tier = true, s.Identity.KeyID.in(f.metadata), s.Identity.Tier.in(f.metadata)
		return
	}
	for _, name := range s.KeyHeaders {
		q.credentials = apikey.AppendCredentials(q.credentials, f.header(name), name == "authorization")
	}
}
