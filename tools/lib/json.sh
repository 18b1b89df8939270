# The little JSON that the scripts read: values of the tools' own one-object results and one-line rows.
# shellcheck shell=bash

# json_number KEY FILE
json_number() { tr '\n' ' ' <"$2" | grep -oE "\"$1\"[[:space:]]*:[[:space:]]*-?[0-9.eE+-]+" | head -n 1 | sed 's/.*:[[:space:]]*//'; }

# json_strings KEY: of each line of the input, the last string under that key, on one line and unescaped.
json_strings() {
  sed -nE "s/.*\"$1\"[[:space:]]*:[[:space:]]*\"(([^\"\\\\]|\\\\.)*)\".*/\1/p" |
    sed -E 's/\\[nrt]/ /g; s/\\(["\\\/])/\1/g'
}
