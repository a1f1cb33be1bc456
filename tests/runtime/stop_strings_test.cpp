#include "runtime/stop_strings.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(StopStrings, CutsBeforeAStringThatSpansPieces) {
    StopStrings stop({"\n\n", "END"});
    EXPECT_FALSE(stop.push("one\n"));
    EXPECT_FALSE(stop.push("two E"));
    EXPECT_EQ(stop.text(), "one\ntwo E");
    EXPECT_FALSE(stop.push("N"));
    EXPECT_TRUE(stop.push("D three"));
    EXPECT_EQ(stop.text(), "one\ntwo ");
    EXPECT_TRUE(stop.push("more"));
    EXPECT_EQ(stop.text(), "one\ntwo ");
}

TEST(StopStrings, HoldsBackWhatMayBecomeAStop) {
    StopStrings stop({"abab!"});
    stop.push("xab");
    EXPECT_EQ(stop.num_safe_bytes(), 1u);
    stop.push("a");  // "aba" may be the beginning
    EXPECT_EQ(stop.num_safe_bytes(), 1u);
    stop.push("ba");  // xababa: now only the last "aba" may
    EXPECT_EQ(stop.num_safe_bytes(), 3u);
    stop.push("c");
    EXPECT_EQ(stop.num_safe_bytes(), stop.text().size());
}

TEST(StopStrings, OfSeveralTheOneThatEndsFirst) {
    StopStrings stop({"bcd", "abc", "c"});
    EXPECT_TRUE(stop.push("xabcd"));
    EXPECT_EQ(stop.text(), "x");  // "abc" and "c" end together; "abc" begins first
}

TEST(StopStrings, WhatIsPassedStopsNothing) {
    StopStrings stop({"ab"});
    stop.pass("abab a");
    EXPECT_FALSE(stop.push("c"));
    stop.pass(" a");
    EXPECT_TRUE(stop.push("b c"));  // it ends in what is pushed
    EXPECT_EQ(stop.text(), "abab ac ");
}

TEST(StopStrings, EmptyStringsStopNothing) {
    StopStrings stop({""});
    EXPECT_FALSE(stop.push("text"));
    EXPECT_EQ(stop.num_safe_bytes(), 4u);
}

TEST(StopStrings, FindsARepeatedCharacterStopOnceItIsWhole) {
    StopStrings stop({"aaa"});
    EXPECT_FALSE(stop.push("a"));
    EXPECT_FALSE(stop.push("a"));
    EXPECT_EQ(stop.num_safe_bytes(), 0u);
    EXPECT_TRUE(stop.push("a"));
    EXPECT_EQ(stop.text(), "");
}

}  // namespace
}  // namespace ferry
