package store

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
)

// A snapshot is a header, a payload and the payload's SHA-256. The header is
// snapshotMagic, the version in 4 bytes and the payload's length in 8, the most
// significant first. The payload is frames, each a message of encoding/gob. See
// docs/decisions/snapshot.md.
const (
	snapshotMagic   = "TGCOUNTS"
	snapshotVersion = 1
	headerSize      = len(snapshotMagic) + 4 + 8
)

// snapshotBuffer is how much is read or written at once, in bytes.
const snapshotBuffer = 1 << 18

// A damageError says why a snapshot cannot be used.
type damageError string

func (e damageError) Error() string { return string(e) }

func damagef(format string, args ...any) error { return damageError(fmt.Sprintf(format, args...)) }

func snapshotHeader(length uint64) []byte {
	h := binary.BigEndian.AppendUint32([]byte(snapshotMagic), snapshotVersion)
	return binary.BigEndian.AppendUint64(h, length)
}

// writeSnapshot writes what is counted into an empty file. A shard is locked as long as
// its copying takes, one after the other.
func (m *Memory) writeSnapshot(f *os.File) error {
	if _, err := f.Write(snapshotHeader(0)); err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	sum := sha256.New()
	buffer := bufio.NewWriterSize(io.MultiWriter(f, sum), snapshotBuffer)
	frames := gob.NewEncoder(buffer)
	var c shardCopy
	for i := range m.shards {
		m.shards[i].copyTo(&c, m.names, m.now)
		runtime.Gosched() // whoever waited for the shard goes first
		if err := c.encode(frames); err != nil {
			return err
		}
	}
	if err := buffer.Flush(); err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	end, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	if _, err := f.Write(sum.Sum(nil)); err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	_, err = f.WriteAt(snapshotHeader(uint64(end-int64(headerSize))), 0) //nolint:gosec // not below 0
	return err                                                           //nolint:wrapcheck // it names the file
}

// readSnapshot takes up a snapshot of that many bytes. It returns a damageError where it
// cannot be used, and then the memory is empty.
func (m *Memory) readSnapshot(f io.ReaderAt, size int64) error {
	payload, err := checkSnapshot(f, size)
	if err != nil {
		return err
	}
	frames := gob.NewDecoder(bufio.NewReaderSize(payload, snapshotBuffer))
	l := loader{memory: m, now: m.now().UnixMilli()}
	for {
		var next frame
		err := frames.Decode(&next)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = l.load(&next)
		}
		if errors.As(err, new(*fs.PathError)) {
			return err
		}
		if err != nil {
			m.clear()
			return damagef("it contradicts itself: %v", err)
		}
	}
}

// checkSnapshot returns the payload of a snapshot, if it is whole.
func checkSnapshot(f io.ReaderAt, size int64) (*io.SectionReader, error) {
	header := make([]byte, min(size, int64(headerSize)))
	if _, err := f.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err //nolint:wrapcheck // it names the file
	}
	if n := min(len(header), len(snapshotMagic)); string(header[:n]) != snapshotMagic[:n] {
		return nil, damagef("it is no snapshot of TierGate: it does not begin with %s", snapshotMagic)
	}
	if len(header) < headerSize {
		return nil, damagef("it ends after %d bytes, in its header", size)
	}
	fields := header[len(snapshotMagic):]
	if v := binary.BigEndian.Uint32(fields); v != snapshotVersion {
		return nil, damagef("it has version %d of the format, and this TierGate reads version %d", v, snapshotVersion)
	}
	length, room := binary.BigEndian.Uint64(fields[4:]), size-int64(headerSize)-sha256.Size
	if room < 0 || length != uint64(room) {
		return nil, damagef("it has %d bytes, and by its header %d of payload beside %d others", size, length, headerSize+sha256.Size)
	}
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, io.NewSectionReader(f, int64(headerSize), room), make([]byte, snapshotBuffer)); err != nil {
		return nil, err //nolint:wrapcheck // it names the file
	}
	var want [sha256.Size]byte
	if _, err := f.ReadAt(want[:], int64(headerSize)+room); err != nil && !errors.Is(err, io.EOF) {
		return nil, err //nolint:wrapcheck // it names the file
	}
	if string(sum.Sum(nil)) != string(want[:]) {
		return nil, damagef("its checksum is wrong")
	}
	return io.NewSectionReader(f, int64(headerSize), room), nil
}
