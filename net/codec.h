// The payloads of the gateway-cell protocol as bytes (config/wire.h).
//
// encode() appends to `out`. decode() fills `out`, reusing its capacity, and accepts exactly what
// encode() writes: truncated, surplus, out-of-range or inconsistent bytes give an Error that names
// the field; `out` is then unspecified but valid.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "config/result.h"
#include "coordinator/request.h"

namespace millrace::net {

struct Hello {
  CellInfo info;
  std::string secret;  // shared with the gateway; empty when none is configured

  bool operator==(const Hello&) const = default;
};

struct Welcome {
  std::uint32_t heartbeat_limit_ms = 0;  // a cell silent for longer is taken for dead

  bool operator==(const Welcome&) const = default;
};

struct Notice {
  std::string reason;  // a sentence for people

  bool operator==(const Notice&) const = default;
};

struct Cancel {
  RequestId id = 0;

  bool operator==(const Cancel&) const = default;
};

using Bytes = std::vector<std::uint8_t>;
using ByteView = std::span<const std::uint8_t>;

void encode(const Hello& v, Bytes& out);
void encode(const Welcome& v, Bytes& out);
void encode(const Notice& v, Bytes& out);
void encode(const Cancel& v, Bytes& out);
void encode(const SequenceRequest& v, Bytes& out);
void encode(std::span<const TokenEvent> v, Bytes& out);
void encode(const PromptLogprobsEvent& v, Bytes& out);
void encode(const CellStatus& v, Bytes& out);
void encode(const CellTelemetry& v, Bytes& out);

Result<void> decode(ByteView in, Hello& out);
Result<void> decode(ByteView in, Welcome& out);
Result<void> decode(ByteView in, Notice& out);
Result<void> decode(ByteView in, Cancel& out);
Result<void> decode(ByteView in, SequenceRequest& out);
Result<void> decode(ByteView in, std::vector<TokenEvent>& out);
Result<void> decode(ByteView in, PromptLogprobsEvent& out);
Result<void> decode(ByteView in, CellStatus& out);
Result<void> decode(ByteView in, CellTelemetry& out);

}  // namespace millrace::net
