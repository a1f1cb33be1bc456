// GPT-2's byte alphabet: every byte stands for one printable character, so that a vocabulary of
// strings can hold any bytes (Radford et al. 2019, `bytes_to_unicode`).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {

struct ByteAlphabet {
    std::array<char32_t, 256> char_of{};
    std::array<int16_t, 512> byte_of{};  // -1 where a character stands for no byte

    constexpr ByteAlphabet() {
        byte_of.fill(-1);
        char32_t next_free = 256;
        for (int byte = 0; byte < 256; ++byte) {
            const bool is_printable =
                (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            const char32_t c = is_printable ? char32_t(byte) : next_free++;
            char_of[size_t(byte)] = c;
            byte_of[c] = int16_t(byte);
        }
    }
};
inline constexpr ByteAlphabet kByteAlphabet;

// Appends one alphabet character per byte.
inline void append_byte_level(std::string_view bytes, std::string* out) {
    for (const char byte : bytes) append_char(kByteAlphabet.char_of[uint8_t(byte)], out);
}

// Appends the bytes that `token` stands for, or `token` itself when a character of it is outside
// the alphabet (an added token).
inline void append_token_bytes(std::string_view token, std::string* out) {
    const size_t old_size = out->size();
    for (size_t pos = 0; pos < token.size();) {
        const char32_t c = next_char(token, &pos);
        const int byte = c < 512 ? kByteAlphabet.byte_of[c] : -1;
        if (byte < 0) {
            out->resize(old_size);
            out->append(token);
            return;
        }
        out->push_back(char(byte));
    }
}

}  // namespace ferry::tok
