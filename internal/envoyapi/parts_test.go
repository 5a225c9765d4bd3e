package envoyapi

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// TestMetadataInManyParts is of a message of 4 MB, the largest that is taken by default: to
// read it costs no more than its length.
func TestMetadataInManyParts(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	field := func(to []byte, number protowire.Number, text []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), text)
	}
	attributes := field(nil, 11, field(nil, 15, bytes.Repeat([]byte{'x'}, size/2)))
	attributes = append(attributes, bytes.Repeat(field(nil, 11, field(nil, 15, nil)), (size-len(attributes))/4)...)
	text := string(field(nil, 1, attributes))
	began, read := time.Now(), make(chan struct{})
	go func() {
		defer close(read)
		readCheck(text, &Settings{wanted: []string{"authorization"}})
	}()
	select {
	case <-read:
		t.Logf("%d bytes: %s", len(text), time.Since(began))
	case <-time.After(5 * time.Second):
		t.Error("a message is read for 5 s, and no end")
	}
}
