#pragma once
#include <string>
#include <string_view>

namespace qlora {

// Text for the inside of an element or a quoted attribute, with the entities that Jinja's `escape` writes.
std::string escape_html(std::string_view text);

}  // namespace qlora
