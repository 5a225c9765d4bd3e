package store

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/redis/go-redis/v9"
)

// LogRedis has the Redis client write what it has to say, such as each connection that it
// cannot make, to a log at level debug; else it goes to standard error. It is for the whole
// process, and to be called before NewRedis.
func LogRedis(log *slog.Logger) { redis.SetLogger(redisLog{log}) }

type redisLog struct{ log *slog.Logger }

// Printf implements the client's interface of loggers.
func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	if !l.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	text := fmt.Sprintf(format, v...)
	// What cannot be read, as a message that Redis sends unasked, may repeat the password.
	if strings.HasPrefix(text, "push: ") {
		text = "a message that Redis has sent unasked could not be read"
	}
	l.log.DebugContext(ctx, "the Redis client says", "text", text)
}
