package store

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// LogRedis has the Redis client write what it has to say, such as each connection that it
// cannot make, to a log at level debug; else it goes to standard error. It is for the whole
// process, and to be called before NewRedis.
func LogRedis(log *slog.Logger) { redis.SetLogger(redisLog{log}) }

type redisLog struct{ log *slog.Logger }

// Printf implements the client's interface of loggers.
func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "the Redis client says", "text", fmt.Sprintf(format, v...))
	}
}
