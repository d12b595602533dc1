// What the field tables in cluster_config.h say about each field, and the few types a field may
// have.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace millrace {

// One field of a section: its name, what values it may have and what it does. A name ending in
// _bytes also accepts sizes such as 2GiB; _ms, _bytes and _tokens state the unit of a plain number.
struct FieldSpec {
  std::string_view name;
  std::string_view help;  // one or two sentences for operators
  double min = 0;         // for numbers; both ends allowed
  double max = 0;
  bool min_exclusive = false;  // then min itself is refused
  bool secret = false;         // never printed
};

// Values of an enumeration as they are written in YAML. Each enumeration of the configuration has
// one overload of enum_names, found by its type.
template <class E, std::size_t N>
using EnumNames = std::array<std::pair<std::string_view, E>, N>;

}  // namespace millrace
