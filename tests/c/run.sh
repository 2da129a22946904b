#!/bin/sh
# Tests the C interface with a model file:
#
#     tests/c/run.sh MODEL.gguf
#
# Builds the library, then test_api.c as C11 and as C++17 against the static and the shared library, and once
# more under AddressSanitizer with leak detection, and runs them all. Also builds and runs examples/chat.c.
# Variables: CC, CXX, CARGO_TARGET_DIR, ST_PROFILE (dev, the default, or release).
set -eu

[ $# -eq 1 ] || { echo "usage: $0 MODEL.gguf" >&2; exit 2; }
model=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cc=${CC:-cc}
cxx=${CXX:-c++}
profile=${ST_PROFILE:-dev}
folder=$profile
[ "$profile" = dev ] && folder=debug
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

cd "$root"
# The compiler says what a static library needs of the system.
cargo rustc -q -p smallthinker-ffi --lib --profile "$profile" --crate-type staticlib,cdylib -- \
    --print native-static-libs="$out/native"
lib=$(realpath "${CARGO_TARGET_DIR:-target}/$folder")
native=$(cat "$out/native")

warnings="-Wall -Wextra -Werror -pedantic"
c="$cc -std=c11 $warnings -g -O1 -Iinclude"
cpp="$cxx -x c++ -std=c++17 $warnings -g -O1 -Iinclude"
static="$lib/libsmallthinker.a $native -lpthread -lm"
shared="-L$lib -Wl,-rpath,$lib -lsmallthinker -lpthread -lm"

echo "# Exported symbols are those of the header"
nm -D --defined-only "$lib/libsmallthinker.so" | awk '{ print $3 }' | grep '^st_' | sort > "$out/exported"
grep -o '\bst_[a-z_]*(' include/smallthinker.h | tr -d '(' | sort -u > "$out/declared"
diff "$out/declared" "$out/exported"
test "$(nm -D --defined-only "$lib/libsmallthinker.so" | wc -l)" -eq "$(wc -l < "$out/exported")"

echo "# Build"
$c -o "$out/c-static" tests/c/test_api.c $static
$c -o "$out/c-shared" tests/c/test_api.c $shared
# "-x none" ends "-x c++", which would take the library for source text.
$cpp -o "$out/cpp-static" tests/c/test_api.c -x none $static
$cpp -o "$out/cpp-shared" tests/c/test_api.c -x none $shared
$c -fsanitize=address -fno-omit-frame-pointer -o "$out/c-asan" tests/c/test_api.c $static
# A build that silently left the sanitizer out would pass every test.
nm "$out/c-asan" | grep -q __asan_
$c -o "$out/chat" examples/chat.c $static

echo "# The leak check finds a leak"
cat > "$out/leak.c" <<'C'
#include <smallthinker.h>
int main(void) {
    st_model *model = NULL;
    uint32_t *tokens = NULL;
    size_t count = 0;
    if (st_model_open(MODEL, NULL, &model) == ST_OK) {
        st_model_tokenize(model, "a b", 3, 0, &tokens, &count);
        tokens = NULL;
    }
    st_model_free(model);
    return 0;
}
C
$c -fsanitize=address "-DMODEL=\"$model\"" -o "$out/leak" "$out/leak.c" $static
if "$out/leak" 2> "$out/leak.txt"; then echo "the leak was not found" >&2; exit 1; fi
grep -q "LeakSanitizer: detected memory leaks" "$out/leak.txt"

for test in c-static c-shared cpp-static cpp-shared c-asan; do
    echo "# Run $test"
    ASAN_OPTIONS=detect_leaks=1 "$out/$test" "$model"
    "$out/$test" "$model" "Once upon a time" 32 > "$out/$test.ids"
    cmp "$out/c-static.ids" "$out/$test.ids"
done

echo "# Run examples/chat.c"
"$out/chat" "$model" "What is a cat?"
echo "# Greedy tokens after \"Once upon a time\":"
cat "$out/c-static.ids"
