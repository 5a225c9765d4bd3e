package main

import (
	"context"
	"net/http"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// survive turns a panic in a call into an error of that call. A call that has ended while it
// was read is not handled: nobody would hear what is charged for it.
func (s *server) survive(ctx context.Context, r any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	defer s.recovered(ctx, info.FullMethod, &err)
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return handle(ctx, r)
}

// surviveStream does the same for a stream.
func (s *server) surviveStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.recovered(stream.Context(), info.FullMethod, &err)
	return handle(srv, stream)
}

// surviveHTTP does the same for a request. What was written of its answer stays.
func (s *server) surviveHTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		defer func() {
			if err != nil {
				http.Error(w, "internal error", http.StatusInternalServerError)
			}
		}()
		defer s.recovered(r.Context(), r.Method, &err) // the path may hold a secret
		next.ServeHTTP(w, r)
	})
}

// recovered is deferred. The panic's value is not logged: it might quote the
// request.
func (s *server) recovered(ctx context.Context, method string, err *error) {
	if recover() != nil {
		s.log.ErrorContext(ctx, "a call panicked: please report this", "method", method, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error")
	}
}
