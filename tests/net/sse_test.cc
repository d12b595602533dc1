#include "net/sse.h"

#include <gtest/gtest.h>

namespace millrace::net {
namespace {

TEST(Sse, OneLine) {
  EXPECT_EQ(sse_data("{\"a\":1}"), "data: {\"a\":1}\n\n");
  EXPECT_EQ(sse_data(""), "data: \n\n");
}

TEST(Sse, EveryLineEndStartsANewDataLine) {
  EXPECT_EQ(sse_data("a\nb"), "data: a\ndata: b\n\n");
  EXPECT_EQ(sse_data("a\r\nb"), "data: a\ndata: b\n\n");
  EXPECT_EQ(sse_data("a\rb\n"), "data: a\ndata: b\ndata: \n\n");
  // A payload must not be able to end its event and forge another.
  EXPECT_EQ(sse_data("x\n\ndata: forged"), "data: x\ndata: \ndata: data: forged\n\n");
}

TEST(Sse, CommentIsNoEvent) { EXPECT_EQ(sse_comment("keep-alive"), ": keep-alive\n\n"); }

}  // namespace
}  // namespace millrace::net
