# awk -v out=FOLDER -f plant.awk FILE...: copies of CUDA sources into FOLDER, with a fault planted beside everything that
# can be left out or off by one in their device functions, and FOLDER/places.txt: a line a fault: number, tab, file, tab,
# line, tab, the how manieth of that line, tab, what it does, tab, the line as it stands. Fault n is in force where
# QLORA_PLANTED(n) is 1 (planted.h); lines keep their numbers. It relies on the layout of .clang-format: binary
# operators stand between spaces, template brackets do not.
#
#   leaves out   barrier(), warp_barrier(), wait_copies<n>(), commit_copies()
#   weakens      wait_copies<n>() by one group
#   off by one   the right side of < > <= >=, what + and - and += and -= add, what * / % take, where a for begins;
#                indices of pointers and shared memory, of asynchronous copies, matrix loads and shuffles; 16 bytes of
#                a launch's shared memory

function planted(what) {
  ++count
  ++of_line
  printf "%d\t%s\t%d\t%d\t%s\t%s\n", count, file, number, of_line, what, text > (out "/places.txt")
  return "QLORA_PLANTED(" count ")"
}

function trimmed(s) {
  sub(/^[ ]+/, "", s)
  return s
}

# Takes the n characters that matched from the line's rest; returns them.
function take(n, taken) {
  taken = substr(rest, 1, n)
  rest = substr(rest, n + 1)
  return taken
}

# Names of pointers, Rows and Shared, whose elements lie in memory; arrays in registers are none.
function learn_names(s, piece) {
  while (match(s, /[A-Za-z_]\*( const)? [a-z_]+|[ (]\*[a-z_]+|(Shared|Rows)<[^<>]*(<[^<>]*>)?>&? [a-z_]+|[a-z_]+ = [a-z_]+\.(from|take)/)) {
    piece = substr(s, RSTART, RLENGTH)
    s = substr(s, RSTART + RLENGTH)
    sub(/ = .*/, "", piece)
    sub(/.*[ *(]/, "", piece)
    in_memory[piece] = 1
    # Rows<T> x, y;
    if (s ~ /^(, [a-z_]+)+;/) {
      piece = s
      sub(/;.*/, "", piece)
      gsub(/,/, "", piece)
      fields = split(piece, named, " ")
      for (k = 1; k <= fields; ++k) in_memory[named[k]] = 1
    }
  }
}

# The rest of a line of a device function's body, its faults planted.
function plant_rest(done, operator, p) {
  done = ""
  while (rest != "") {
    before = substr(done, length(done))
    if (before !~ /[A-Za-z0-9_.]/) {
      if (match(rest, /^if constexpr \([^()]*\)/) || match(rest, /^(constexpr|using|static_assert)[ (][^;]*/)) {
        done = done take(RLENGTH)
        continue
      }
      if (match(rest, /^(barrier|warp_barrier|commit_copies)\(\)/)) {
        p = planted("leaves it out: " substr(rest, 1, RLENGTH))
        done = done "(" p " ? void() : " take(RLENGTH) ")"
        continue
      }
      if (match(rest, /^wait_copies<[^<>]*>\(\)/)) {
        operator = take(RLENGTH)
        p = planted("leaves it out: " operator)
        done = done "(" p " ? void() : "
        p = planted("waits for one group less: " operator)
        sub(/>\(\)$/, " + 1>()", operator)
        done = done p " ? " operator " : "
        sub(/ \+ 1>\(\)$/, ">()", operator)
        done = done operator ")"
        continue
      }
      if (match(rest, /^(copy_async16|load_matrices|load_matrices_transposed|shuffle|shuffle_xor)\([a-z_]+(\[[a-z]+\])?(, (a|b|s|sa|sb|tile|others|own|v|k|q))?, /)) {
        operator = take(RLENGTH)
        if (operator ~ /^load_matrices/ && operator !~ /, .*, /)
          done = done operator
        else
          done = done operator planted("one more: " operator) " + "
        continue
      }
      if (match(rest, /^for \((int|int64_t) [a-z0-9_]+ = /)) {
        operator = take(RLENGTH)
        done = done operator planted("begins one later: " operator) " + "
        continue
      }
    }
    if (match(rest, /^ (<|>|<=|>=|\+|-|\+=|-=)( |$)/)) {
      operator = trimmed(take(RLENGTH))
      sub(/ $/, "", operator)
      p = planted("off by one: " operator)
      if (operator == "<" || operator == ">=") done = done " " operator " " p " + "
      else if (operator == ">" || operator == "<=") done = done " " operator " -" p " + "
      else if (operator == "-") done = done " - " p " - "
      else done = done " " operator " " p " + "
      continue
    }
    if (match(rest, /^ [*\/%] ([A-Za-z_][A-Za-z0-9_]*(::|\.))*[A-Za-z0-9_.]+(\(\))?/) &&
        substr(rest, RLENGTH + 1, 1) !~ /[(\[.<:A-Za-z0-9_]/) {
      operator = take(RLENGTH)
      done = done substr(operator, 1, 3) "(" planted("one more:" operator) " + " substr(operator, 4) ")"
      continue
    }
    if (rest ~ /^\[[^\]]/ && match(done, /[A-Za-z_][A-Za-z0-9_]*$/) && substr(done, RSTART) in in_memory &&
        done !~ /^ *(const )?[a-z0-9_]+ [a-z_]+$/ && rest !~ /^\[[^\[\]]* \+ /) {
      operator = substr(done, RSTART)
      done = done take(1) planted("one further: " operator "[]") " + "
      continue
    }
    if (match(rest, /^\.from\(/)) {
      done = done take(RLENGTH) planted("one further: .from()") " + "
      continue
    }
    done = done take(1)
  }
  return done
}

# A line of a file; state: 0 outside of device functions, 1 in the parameters of one, 2 after them.
function plant_line(s, code, comment, done, c, start) {
  text = trimmed(s)
  of_line = 0
  if (s ~ /^ *(#|\/\/)/) return s
  comment = ""
  if (match(s, / *\/\/.*/)) {
    comment = substr(s, RSTART)
    s = substr(s, 1, RSTART - 1)
  }
  if (state == 0 && match(s, /[a-zA-Z]*::kShared,/) && s !~ /=/) {
    start = RSTART + RLENGTH - 1
    return substr(s, 1, start - 1) " - 16 * " planted("16 bytes less of shared memory") substr(s, start) comment
  }
  if (state == 0) {
    if (s !~ /QLORA_DEVICE/ || s ~ /#/) return s comment
    state = 1
    depth = 0
    seen = 0
  }
  done = ""
  while (state == 1 && s != "") {
    if (s ~ /^operator\(\)/) {
      done = done substr(s, 1, 10)
      s = substr(s, 11)
    }
    c = substr(s, 1, 1)
    s = substr(s, 2)
    done = done c
    if (c == "(") ++depth
    if (c == ")" && --depth == 0) {
      state = 2
      depth = 0
    }
  }
  if (state != 2) return done comment
  # Declarations of arrays stay as they are: their sizes are constants.
  code = s
  if (s !~ /^ *(const )?(float|double|int|bool|u?int[0-9]+_t|bf16) ?(\(&)?[a-z_]+\)?\[/) {
    rest = s
    s = plant_rest()
  }
  gsub(/[^{};]/, "", code)
  for (start = 1; start <= length(code); ++start) {
    c = substr(code, start, 1)
    if (c == "{") ++depth
    if (c == "}") --depth
    if ((c == "}" || c == ";") && depth == 0) state = 0
  }
  return done s comment
}

FNR == 1 {
  ++files
  name[files] = FILENAME
}
{
  lines[files] = FNR
  all[files, FNR] = $0
}
END {
  for (f = 1; f <= files; ++f) {
    file = name[f]
    split("", in_memory)
    for (number = 1; number <= lines[f]; ++number) learn_names(all[f, number])
    state = 0
    for (number = 1; number <= lines[f]; ++number) print plant_line(all[f, number]) > (out "/" file)
    close(out "/" file)
  }
}
