package e2e

import (
	"testing"

	"google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/tiergate/tiergate/internal/devstack"
)

// reflected returns the services that gRPC reflection lists.
func reflected(t *testing.T, s *devstack.Stack) []string {
	t.Helper()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(dial(t, s)).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{ListServices: "*"},
	}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	return names
}
